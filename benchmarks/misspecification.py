"""Misspecification tests of simulators: p-values of ManifoldFlow, and the tests of sbi.

    python -m benchmarks.misspecification

Needs ``pip install sbi``. Prints the tables of docs/evidence/misspecification.md. Repetitions are
kept in data/misspecification/, so that an interrupted command resumes. Seconds are processor time.
"""

import importlib.util
import time
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

SIMULATORS = {"gaussian, 2": 2, "two moons, 2": None, "gaussian, 20": 20, "gaussian, 100": 100}
CASES = {"none": [0], "shift": [0.5, 1, 2], "tails": [10, 3, 1], "mixed": [0.1, 0.25, 0.5]}
FLOW, HELD = CONFORMAL = "flow", "sbi log-prob, held-out rows"


def gaussian(dim: int) -> torch.distributions.MultivariateNormal:
    """Outputs theta + noise with a normal prior of variance 0.1 and correlated noise."""
    noise = 0.9 ** (torch.arange(dim)[:, None] - torch.arange(dim)).abs()
    return torch.distributions.MultivariateNormal(torch.zeros(dim), 0.1 * torch.eye(dim) + noise)


def simulate(dim: int | None, count: int) -> Tensor:
    """Simulate with parameters of the prior: a linear Gaussian, or two moons if dim is None."""
    if dim is not None:
        return gaussian(dim).sample((count,))
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


# ---- tests: they are fitted to simulations, and return p-values of observations by name


def exact(x: Tensor, seed: int) -> Any:
    precision, dim = gaussian(x.shape[1]).precision_matrix, x.shape[1]
    return lambda x: {"exact density": scipy.stats.chi2.sf(((x @ precision) * x).sum(1), dim)}


def flow(x: Tensor, seed: int) -> Any:
    fitted = ManifoldFlow(steps=200, random_state=seed).fit(x.numpy())  # of the default 900
    return lambda x: {FLOW: fitted.p_values(x.numpy())}


def log_prob(x: Tensor, seed: int) -> Any:
    """calc_misspecification_logprob without its check, a classifier for each observation."""
    from sbi.inference import MarginalTrainer

    silent = SimpleNamespace(log_metric=lambda **_: None, flush=lambda: None)
    trainer = MarginalTrainer(show_progress_bars=False, tracker=silent).append_samples(x)
    of = torch.no_grad()(trainer.train().log_prob)
    known = {HELD: of(x[trainer.val_indices]), "sbi log-prob, all rows": of(x)}
    return lambda x: {key: (y[:, None] <= of(x)).double().mean(0) for key, y in known.items()}


def mmd(x: Tensor, seed: int) -> Any:
    """calc_misspecification_mmd with 500 simulations and shuffles, as it is slow, for 50 rows."""
    from sbi.diagnostics import misspecification as sbi

    baseline = sbi.calculate_baseline_mmd(1, x, 500, 500)
    distance = partial(sbi.compute_rbf_mmd_median_heuristic, y=x[:500])
    distances = lambda x: torch.stack([distance(row[None]) for row in x[:50]])  # noqa: E731
    return lambda x: {"sbi MMD": (baseline >= distances(x)[:, None]).double().mean(1)}


def measure(name: str, fit: Any, seed: int) -> list[dict[str, Any]]:
    """P-values by test and contamination; seconds of the training and of one observation."""
    torch.manual_seed(seed)
    x, right = simulate(SIMULATORS[name], 1000), simulate(SIMULATORS[name], 200)
    cases = [(k, level, contaminate(right, k, level)) for k in CASES for level in CASES[k]]
    times, test = [time.process_time()], fit(x, seed)
    for _ in range(2):
        times.append(time.process_time())
        test(right[:1])
    training, scoring = np.diff(times)
    return [
        {
            "simulator": name,
            "test": key,
            "seed": seed,
            "case": f"{kind} {level:g}",
            "p": np.asarray(p).round(4).tolist(),
            "training": training,
            "one test": scoring,
        }
        for kind, level, rows in cases
        for key, p in test(rows).items()
    ]


def uniformity(p_values: Any) -> str:
    """P-value of two-sample tests that new rows rank among held-out rows as those do."""
    held_out = np.linspace(1 / 101, 1, 100)
    tests = [scipy.stats.ks_2samp(p, held_out).pvalue for p in p_values]
    return f"{scipy.stats.combine_pvalues(tests).pvalue:.3f}"


def tables(rows: pd.DataFrame) -> str:
    """False-alarm rates; power at 5% by contamination, with differences paired by seed."""
    for level in (0.01, 0.05, 0.1):
        rows[f"{level:.0%}"] = [100 * np.mean(np.array(p) < level) for p in rows["p"]]
    is_right = rows["case"] == "none 0"
    right = rows[is_right].groupby(["simulator", "test"], sort=False)
    alarms = right[["1%", "5%", "10%"]].agg(lambda rates: over_seeds(rates, ".1f"))
    alarms["uniform"] = [uniformity(p) if key[1] in CONFORMAL else "–" for key, p in right["p"]]
    alarms["repetitions"] = right.size()
    alarms = alarms.join(right[["training", "one test"]].median().map("{:.2g} s".format))
    index = ["simulator", "case", "seed"]
    wrong = rows[~is_right].pivot_table("5%", index, "test", sort=False)
    wrong["flow minus held-out"] = wrong[FLOW] - wrong[HELD]
    power = wrong.groupby(level=index[:2], sort=False)
    power = power.agg(lambda rates: over_seeds(rates.dropna(), ".0f") if rates.count() else "–")
    return "\n".join(markdown(table.reset_index().to_dict("records")) for table in (alarms, power))


@click.command(help=__doc__)
@click.option("--repetitions", default=20, show_default=True, help="Of the flow, two columns.")
@click.option("--compared", default=5, show_default=True, help="Of the others.")
def main(repetitions: int, compared: int) -> None:
    if importlib.util.find_spec("sbi") is None:
        raise click.ClickException("sbi: expected the package, got none. Run: pip install sbi")
    torch.set_num_threads(1)
    rows = []
    for seed, name, fit in product(range(repetitions), SIMULATORS, (flow, mmd, exact, log_prob)):
        is_left_out = seed >= compared and (fit != flow or not name.endswith(" 2"))
        if not is_left_out and not (fit == exact and SIMULATORS[name] is None):
            path = Path(f"data/misspecification/{name}, {fit.__name__}, {seed}.json")
            rows += kept(path, partial(measure, name, fit, seed))
    click.echo(tables(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
