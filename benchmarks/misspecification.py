"""Misspecification tests of simulators: p-values of ManifoldFlow, and the tests of sbi.

    python -m benchmarks.misspecification

Needs ``pip install sbi``. Prints the tables of docs/evidence/misspecification.md. Repetitions are
kept in data/misspecification/, so that an interrupted command resumes. Seconds are processor time.
"""

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor

from benchmarks.results import kept, markdown, over_seeds
from submanifold.sklearn import ManifoldFlow

RESULTS = Path("data/misspecification")
SIMULATORS = {"gaussian, 2": 2, "two moons, 2": None, "gaussian, 20": 20, "gaussian, 100": 100}
CASES = {"none": [0], "shift": [0.5, 1, 2], "tails": [10, 3, 1], "mixed": [0.1, 0.25, 0.5]}
STEPS = 200  # of the default 900
RIGHT, HELD_OUT = "none 0", 100
OF_MMD = 500  # simulations and shuffles, as MMD is slow
Test = Callable[[Tensor], np.ndarray]  # p-values of observations, (variants, n)


def noise_covariance(dim: int) -> Tensor:
    return 0.9 ** (torch.arange(dim)[:, None] - torch.arange(dim)).abs().float()


def simulate(dim: int | None, count: int) -> Tensor:
    """Simulate with parameters of the prior: a linear Gaussian, or two moons if dim is None."""
    if dim is not None:
        noise = torch.randn(count, dim) @ torch.linalg.cholesky(noise_covariance(dim)).T
        return 0.1**0.5 * torch.randn(count, dim) + noise
    theta, angle = 2 * torch.rand(count, 2) - 1, np.pi * (torch.rand(count) - 0.5)
    r = 0.1 + 0.01 * torch.randn(count)
    center = torch.stack([-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], 1) / 2**0.5
    return center + torch.stack([0.25 + r * angle.cos(), r * angle.sin()], 1)


def contaminate(x: Tensor, kind: str, level: float) -> Tensor:
    """Shift by standard deviations, scale rows as Student's t does, or mix columns of rows."""
    if kind == "tails":
        squares = torch.distributions.Chi2(level).sample((len(x), 1))
        return x.mean(0) + (x - x.mean(0)) * (level / squares).sqrt()
    shift = level * x.std(0) if kind == "shift" else 0
    return torch.where((torch.rand(x.shape) < level) & (kind == "mixed"), x.roll(1, 0), x + shift)


def exact(x: Tensor, seed: int) -> Test:
    """Test by the density of the linear Gaussian: tails of the Mahalanobis distance."""
    precision = torch.linalg.inv(noise_covariance(x.shape[1]) + 0.1 * torch.eye(x.shape[1]))
    return lambda x: scipy.stats.chi2.sf(((x @ precision) * x).sum(1).double()[None], x.shape[1])


def flow(x: Tensor, seed: int) -> Test:
    fitted = ManifoldFlow(steps=STEPS, random_state=seed).fit(x.numpy())
    return lambda x: fitted.p_values(x.numpy())[None]


def log_prob(x: Tensor, seed: int) -> Test:
    """calc_misspecification_logprob without its check, a classifier for each observation."""
    from sbi.inference import MarginalTrainer

    silent = SimpleNamespace(log_metric=lambda **_: None, flush=lambda: None)
    trainer = MarginalTrainer(show_progress_bars=False, tracker=silent).append_samples(x)
    density = trainer.train()

    @torch.no_grad()
    def test(rows: Tensor) -> np.ndarray:
        known = [density.log_prob(x[trainer.val_indices]), density.log_prob(x)]
        log_probs = density.log_prob(rows)
        return np.stack([(each[:, None] <= log_probs).double().mean(0) for each in known])

    return test


def mmd(x: Tensor, seed: int) -> Test:
    """calc_misspecification_mmd with one baseline for all observations, of which it tests 50."""
    from sbi.diagnostics import misspecification as sbi

    baseline = sbi.calculate_baseline_mmd(1, x, OF_MMD, OF_MMD)
    distance = partial(sbi.compute_rbf_mmd_median_heuristic, y=x[:OF_MMD])
    return lambda rows: np.array([[1 - (baseline < distance(row[None])).double().mean()
                                   for row in rows[:50]]])  # fmt: skip


TESTS = {
    "flow": (flow, ["flow"]), "mmd": (mmd, ["sbi MMD"]), "exact": (exact, ["exact density"]),
    "log-prob": (log_prob, ["sbi log-prob, held-out rows", "sbi log-prob, all rows"]),
}  # fmt: skip


def measure(fit: Callable[[Tensor, int], Test], dim: int | None, seed: int) -> dict[str, Any]:
    """P-values by contamination; seconds of the training and of one observation."""
    torch.manual_seed(seed)
    x, right = simulate(dim, 1000), simulate(dim, 200)
    cases = {f"{kind} {level:g}": contaminate(right, kind, level)
             for kind, levels in CASES.items() for level in levels}  # fmt: skip
    times = [time.process_time()]
    test = fit(x, seed)
    times.append(time.process_time())
    test(right[:1])
    times.append(time.process_time())
    p_values = {case: test(x).round(4).tolist() for case, x in cases.items()}
    return {"seconds": np.diff(times).tolist(), "p_values": p_values}


def uniformity(p: np.ndarray) -> float:
    """P-value of exact two-sample tests that new rows rank among held-out rows as those do."""
    ranks = np.arange(1, HELD_OUT + 1)
    tests = [scipy.stats.ks_2samp(row * (HELD_OUT + 1) - 0.5, ranks).pvalue for row in p]
    return float(scipy.stats.combine_pvalues(tests).pvalue)


def rows_of(name: str, fit: str, seed: int, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rates of rejection; sbi rejects p-values below the level, conformal ones reach it."""
    return [
        {"simulator": name, "test": test, "seed": seed, "case": case, "level": f"{level:.0%}",
         "rate": 100 * np.mean(np.array(p) < level if "sbi" in test else np.array(p) <= level),
         "seconds": "{:.2g} + {:.2g}".format(*result["seconds"])}
        for case, by_test in result["p_values"].items() for level in (0.01, 0.05, 0.1)
        for test, p in zip(TESTS[fit][1], by_test, strict=True)
    ]  # fmt: skip


def tables(rows: pd.DataFrame) -> str:
    """False-alarm rates at three levels; power at 5% by contamination, and paired differences."""
    right, keys = rows["case"] == RIGHT, ["simulator", "case"]
    alarms = rows[right].groupby(["simulator", "test", "level"], sort=False)["rate"]
    alarms = alarms.agg(lambda rates: over_seeds(rates, ".1f")).unstack(sort=False)
    wrong = rows[~right & (rows["level"] == "5%")]
    power = wrong.groupby([*keys, "test"], sort=False)["rate"]
    power = power.agg(lambda rates: over_seeds(rates, ".0f")).unstack(sort=False)
    paired = wrong.pivot_table("rate", [*keys, "seed"], "test", sort=False)
    difference = (paired["flow"] - paired["sbi log-prob, held-out rows"]).dropna()
    power["difference"] = difference.groupby(keys).agg(lambda each: over_seeds(each, ".0f"))
    tables = alarms.reset_index(), power.reset_index()
    return "\n".join(markdown(table.fillna("–").to_dict("records")) for table in tables)


@click.command(help=__doc__)
@click.option("--repetitions", default=20, show_default=True, help="Of the flow, two columns.")
@click.option("--compared", default=5, show_default=True, help="Of the others.")
def main(repetitions: int, compared: int) -> None:
    if importlib.util.find_spec("sbi") is None:
        raise click.ClickException("sbi: expected the package, got none. Run: pip install sbi")
    torch.set_num_threads(1)
    rows = []
    for seed, name, fit in product(range(repetitions), SIMULATORS, TESTS):
        dim = SIMULATORS[name]
        is_left_out = seed >= compared and (fit != "flow" or (dim or 2) > 2)
        if is_left_out or (fit == "exact" and dim is None):
            continue
        measured = partial(measure, TESTS[fit][0], dim, seed)
        result = kept(RESULTS / f"{name}, {fit}, {seed}.json", measured)
        rows += rows_of(name, fit, seed, result)
    click.echo(tables(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
