"""The paper's findings, each checked on the models trained here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from submanifold.data.batches import Batches
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA
from submanifold.evaluation.intervals import (
    Interval,
    interval_over_seeds,
    mean_interval,
    over_seeds,
    plus_minus,
)
from submanifold.evaluation.metrics import METRICS, is_missing
from submanifold.runs.experiments import CachedRun
from submanifold.studies.pages import Content, Runs, Target, read_page
from submanifold.studies.paper.figures import BY_DELTA, DIM_100, by_delta
from submanifold.studies.paper.statistics import (
    STATISTICS,
    measure_normality,
    measure_sharpness,
)
from submanifold.studies.paper.tables import control_cells, needs_of, paper_cells, params_of

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
NOT_RUN, NOT_REPORTED = "not run", "not reported"
FEWEST_SEEDS = 3  # with fewer, only the first is compared
MATCH = 0.05  # bits per dimension that count as equal: the spread that the paper prints
EXPECTED = {"less": (-math.inf, 0.0), "more": (0.0, math.inf), "equal": (-MATCH, MATCH)}
"""The differences for which a claim holds."""
OUTLIERS = 0.01  # fraction of the test pixels, the furthest from their PCA projection
RISE = 1.05  # largest ratio of the last validation loss to the best in a stable training
OURS = "density-first"
SHOWN = ("bits_per_dim", "mse", "baselines.pca.mse", "precision", "recall", "kid")
BEDROOMS = " on LSUN bedroom"  # after methods trained on it; others are on CelebA
AFTER = " after stage "  # between a method and the stage whose coordinates are measured
NORMALITY = "excess_kurtosis"  # name of its measurements of all stages
CLAIMS = read_page("paper/findings")["claims"]
NAMES = {
    name for pairs in CLAIMS.values() for _, first, _, second in pairs for name in (first, second)
}


class Finding(NamedTuple):
    """One comparison that bears on a claim."""

    claim: str
    comparison: str
    found: str = ""
    verdict: str = NOT_RUN


def check_findings(runs: Runs) -> Content:
    """Check every claim of the paper; the table has one row for each comparison."""
    page = read_page("paper/findings")
    table = pd.DataFrame(
        [
            *(compare(runs, claim, *pair) for claim, pairs in CLAIMS.items() for pair in pairs),
            *smaller_delta_loses_outliers(runs),
            *end_to_end_is_unstable(runs),
        ]
    )
    intervals = page["several_seeds" if max(map(len, runs.values())) > 1 else "one_seed"]
    notes = [page["data"], intervals, page["verdicts"]]
    if normal := sorted(_normal_levels(runs)):
        ends = dict.fromkeys(f"{level:.2f}" for level in (normal[0], normal[-1]))
        notes.append(page["statistics"].format(normal=" to ".join(ends)))
    conclusions = [*summary(table), *errors_over_pca(runs)]
    tables = {"Claims": table, "Models": models_table(runs)}
    return Content(tables, data=table, notes=notes, conclusions=conclusions)


def summary(table: pd.DataFrame) -> list[str]:
    """Count the verdicts, and list the claims whose comparisons all have the same one."""
    tried = table[~table["verdict"].isin([NOT_RUN, NOT_REPORTED])]
    counts = tried["verdict"].value_counts()
    lines = [
        f"Of {len(tried)} comparisons of methods, {counts.get(HOLDS, 0)} agree with the paper, "
        f"{counts.get(FAILS, 0)} contradict it, and {counts.get(OPEN, 0)} are not decidable at "
        "this size."
    ]
    verdicts = tried.groupby("claim", sort=False)["verdict"].agg(set)
    for verdict, text in ((HOLDS, "Holds in every comparison"), (FAILS, "Fails in every one")):
        claims = [str(claim) for claim, found in verdicts.items() if found == {verdict}]
        lines += [f"{text}: {'; '.join(claims)}."] if claims else []
    return lines


def errors_over_pca(runs: Runs) -> list[str]:
    """Compare the squared errors of the paper's methods, and of ours, with PCA's."""
    ratios = {}
    for label, seeds in runs.items():
        metrics = [run.load("metrics") for run in seeds]
        errors = [of_seed["mse"]["value"] for of_seed in metrics]
        pca = [of_seed["baselines"]["pca"].get("mse", {}).get("value") for of_seed in metrics]
        if not any(map(is_missing, (*errors, *pca))):
            ratios[label] = sum(errors) / sum(pca)
    ours = ratios.pop(OURS, None)
    if not ratios:
        return []
    best, worst = (choose(ratios, key=ratios.__getitem__) for choose in (min, max))
    line = (
        "Squared errors of encoder projections over those of PCA with as many dimensions: "
        f"{ratios[best]:.2g} ({best}) to {ratios[worst]:.2g} ({worst})"
    )
    return [f"{line}." if ours is None else f"{line}; {OURS}, which is ours, has {ours:.2g}."]


def models_table(runs: Runs) -> pd.DataFrame:
    """Format the metrics of the models, one row for each."""
    rows = []
    for label, seeds in runs.items():
        metrics = [run.load("metrics") for run in seeds]
        row = {"model": label, "dimensions": " → ".join(map(str, metrics[0]["dims"]))}
        for name in SHOWN:
            metric = METRICS[name]
            row[metric.label] = metric.write(over_seeds([metric.read(one) for one in metrics]))
        rows.append(row)
    return pd.DataFrame(rows)


def compare(runs: Runs, claim: str, metric: str, first: str, expected: str, second: str) -> Finding:
    """Judge the difference of a metric between the methods ``first`` and ``second``.

    ``H-MM after stage 1`` is the method H-MM, of which a statistic is measured after each stage.
    """
    _, on, place = second.partition(" on ")
    comparison = f"{first.removesuffix(on + place)} against {second}"
    labels = method_of(first), method_of(second)
    if not {*labels} <= runs.keys():
        return Finding(claim, comparison)
    pairs = [
        [_measured(run, metric, name) for run, name in zip(pair, (first, second), strict=True)]
        for pair in zip(*(runs[label] for label in labels), strict=False)
    ]
    comparison += _counted(len(pairs))
    return _judge(claim, comparison, _difference(pairs), metric, expected)


def method_of(name: str) -> str:
    """Return the label of the runs of a method, or of a method after a stage."""
    return name.partition(AFTER)[0]


def _measured(run: CachedRun, metric: str, name: str) -> Any:
    """Read a metric of a run, or measure a statistic of the method ``name``."""
    if metric == "excess_kurtosis":
        stage = int(name.partition(AFTER)[2])
        return run.cached(NORMALITY, partial(measure_normality, run))[stage - 1]
    if metric == "sharpness":
        return run.cached(metric, partial(measure_sharpness, run))
    return run.load("metrics")[metric]


def _normal_levels(runs: Runs) -> Iterator[float]:
    """Yield the excess kurtosis of as many normal draws as there are test images."""
    for label in {method_of(name) for name in NAMES if AFTER in name} & runs.keys():
        run = runs[label][0]
        for stage in run.cached(NORMALITY, partial(measure_normality, run)):
            yield stage["normal"]


def _difference(pairs: Sequence[Sequence[Any]]) -> Interval:
    """Mean difference of a metric between two methods, with its 95% interval."""
    pairs = pairs if len(pairs) >= FEWEST_SEEDS else pairs[:1]
    if not isinstance(pairs[0][0], Mapping):  # an exact number, equal for all seeds
        return plus_minus(pairs[0][0] - pairs[0][1], 0)
    if any(is_missing(interval["value"]) for pair in pairs for interval in pair):
        return {"value": None}
    differences = [a["value"] - b["value"] for a, b in pairs]
    if len(pairs) > 1:
        return interval_over_seeds(differences)
    if any(is_missing(interval["low"]) for interval in pairs[0]):
        return {"value": differences[0]}
    return plus_minus(differences[0], math.hypot(*(x["high"] - x["low"] for x in pairs[0])) / 2)


def _judge(
    claim: str, comparison: str, difference: Interval, metric: str, expected: str
) -> Finding:
    if is_missing(difference["value"]):
        return Finding(claim, comparison, verdict=NOT_REPORTED)
    (least, most), verdict = EXPECTED[expected], OPEN
    low, high = difference.get("low"), difference.get("high")
    if low is not None and high is not None and not is_missing(low):
        if least < low and high < most:
            verdict = HOLDS
        elif high < least or low > most:
            verdict = FAILS
    shown = difference["value"] if low == high else difference  # exact numbers, or no interval
    found = (METRICS | STATISTICS)[metric].write(shown, signed=True, label=True)
    return Finding(claim, comparison, found, verdict)


def _counted(seeds: int) -> str:
    return f", {seeds} seeds" if seeds >= FEWEST_SEEDS else ""


def smaller_delta_loses_outliers(runs: Runs) -> Iterator[Finding]:
    """Compare the errors of each image on the pixels with the largest PCA errors."""
    claim = "A smaller delta reconstructs outlier pixels worse"
    deltas = by_delta(runs)
    if len(deltas) < 2:
        yield Finding(claim, "two values of delta")
        return
    first = deltas[max(deltas)][0]
    test = Batches(first.load("x_test"), 1024)
    groups = groups_of(first.groups, "test")
    pca, dim = PCA.fit(first.load("x_train")), first.load("metrics")["dims"][-1]
    residuals = _squares(lambda x: pca.project(x, dim), test)
    outliers = residuals >= np.quantile(residuals, 1 - OUTLIERS)

    def errors(model: Any) -> np.ndarray:
        """Mean squared error of each image on its outlier pixels, NaN if it has none."""
        with np.errstate(invalid="ignore"):
            return (_squares(model.encoder_projection, test) * outliers).sum(1) / outliers.sum(1)

    *smaller, (largest, reference) = (
        (delta, [errors(run.load("hierarchy")) for run in seeds])
        for delta, seeds in sorted(deltas.items())
    )
    for delta, seeds in smaller:
        differences = [(a - b)[np.isfinite(a)] for a, b in zip(seeds, reference, strict=False)]
        if len(differences) >= FEWEST_SEEDS:
            difference = interval_over_seeds([float(of_seed.mean()) for of_seed in differences])
        else:
            finite = np.isfinite(seeds[0])
            difference = mean_interval(differences[0], None if groups is None else groups[finite])
        comparison = f"delta {delta} against {largest}, on {OUTLIERS:.0%} of the pixels"
        comparison += _counted(len(differences))
        yield _judge(claim, comparison, difference, "mse", "more")


@torch.no_grad()
def _squares(project: Callable[[torch.Tensor], torch.Tensor], test: Batches) -> np.ndarray:
    """Squared errors of a projection, (N, D)."""
    return torch.cat([(x - project(x)).square().flatten(1) for x, _ in test]).numpy()


def end_to_end_is_unstable(runs: Runs) -> Iterator[Finding]:
    """Compare the training histories of both ways of training at d = 100, by optimizer."""
    claim = "End-to-end training at d = 100 is unstable, hierarchical training is not"
    for optimizer, labels in (("", [*DIM_100]), (", the paper's optimizer", [*PAPERS_OPTIMIZER])):
        dims = f"3072 → 500 → 100{optimizer}"
        if not runs.keys() >= {*labels}:
            yield Finding(claim, dims)
            continue
        (joint, is_unstable), (hierarchical, is_other_unstable) = (
            _stability([history for run in runs[label] for history in run.histories()])
            for label in labels
        )
        verdict = OPEN if is_other_unstable else HOLDS if is_unstable else FAILS
        dims += _counted(min(len(runs[label]) for label in labels))
        found = f"end to end: {joint}; hierarchical: {hierarchical}"
        yield Finding(claim, dims, found, verdict)


def _stability(histories: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Describe how stable trainings are, and return whether any is unstable."""
    rollbacks = sum(history["rollbacks"] for history in histories)
    warnings = sum(len(history["warnings"]) for history in histories)
    losses = [[row["loss"] for row in history["valid"]] for history in histories]
    rise = max(curve[-1] / min(curve) for curve in losses)
    text = f"{rollbacks} rollbacks, {warnings} warnings, last loss {rise:.3f} times the best"
    return text, bool(rollbacks or warnings) or rise > RISE


CLAIMED = {method_of(name) for name in NAMES}
CELEBA = needs_of([*paper_cells(1), *control_cells(1)[:1], *paper_cells(2)])
LSUN = {
    f"{name}{BEDROOMS}{place}": need
    for table, place in ((3, ""), (4, ""), (5, " at d = 700"))
    for name, need in needs_of(paper_cells(table)).items()
}
THREE_STAGES = {"H-MMM": params_of("celeba", "H-MMM", "3072-1000-500-100")}
PAPERS_OPTIMIZER = {
    f"{name}, the paper's optimizer": {
        **need,
        "training.muon_lr": None,
        "training.learning_rate": 1e-5,
        "training.batch_size": 64,
    }
    for name, need in DIM_100.items()
}
TARGET = Target(
    "The paper's findings, checked at the size of a laptop",
    {
        **{name: need for name, need in (CELEBA | LSUN | THREE_STAGES).items() if name in CLAIMED},
        **BY_DELTA,
        **DIM_100,
        **PAPERS_OPTIMIZER,
        OURS: {"dataset": "celeba", "method": OURS, "stage_1.dim": 500},
    },
    check_findings,
    seeds=True,
)
