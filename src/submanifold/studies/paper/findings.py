"""The paper's findings, each checked on the models trained here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA
from submanifold.evaluation.intervals import (
    Interval,
    interval_over_seeds,
    mean_interval,
    plus_minus,
)
from submanifold.evaluation.metrics import METRICS, is_missing
from submanifold.studies.pages import Content, Runs, Target, read_page
from submanifold.studies.paper.figures import BY_DELTA, DIM_100, by_delta
from submanifold.studies.paper.tables import control_cells, needs_of, paper_cells

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
NOT_RUN, NOT_REPORTED = "not run", "not reported"
FEWEST_SEEDS = 3  # with fewer, only the first is compared
MATCH = 0.05  # bits per dimension that count as equal: the spread that the paper prints
EXPECTED = {"less": (-math.inf, 0.0), "more": (0.0, math.inf), "equal": (-MATCH, MATCH)}
"""The differences for which a claim holds."""
OUTLIERS = 0.01  # fraction of the test pixels, the furthest from their PCA projection
RISE = 1.05  # largest ratio of the last validation loss to the best in a stable training
BEDROOMS = " on LSUN bedroom"  # after methods trained on it; others are on CelebA


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
            *(
                compare(runs, claim, *pair)
                for claim, pairs in page["claims"].items()
                for pair in pairs
            ),
            *smaller_delta_loses_outliers(runs),
            end_to_end_is_unstable(runs),
        ]
    )
    intervals = page["several_seeds" if max(map(len, runs.values())) > 1 else "one_seed"]
    notes = [page["data"], intervals, page["verdicts"]]
    return Content({"Claims": table}, data=table, notes=notes, conclusions=summary(table))


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


def compare(runs: Runs, claim: str, metric: str, first: str, expected: str, second: str) -> Finding:
    """Judge the difference of a metric between the methods ``first`` and ``second``."""
    dataset = BEDROOMS if first.endswith(BEDROOMS) else ""
    comparison = f"{first.removesuffix(dataset)} against {second}"
    if not {first, second} <= runs.keys():
        return Finding(claim, comparison)
    pairs = [
        [run.load("metrics")[metric] for run in pair]
        for pair in zip(runs[first], runs[second], strict=False)
    ]
    comparison += _counted(len(pairs))
    return _judge(claim, comparison, _difference(pairs), metric, expected)


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
    found = METRICS[metric].write(shown, signed=True, label=True)
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
    groups = test.events.groups
    pca, dim = PCA.fit(first.load("x_train").x), first.load("metrics")["dims"][-1]
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


def end_to_end_is_unstable(runs: Runs) -> Finding:
    """Compare the training histories of both ways of training at d = 100."""
    claim = "End-to-end training at d = 100 is unstable, hierarchical training is not"
    dims = "3072 → 500 → 100"
    if not runs.keys() >= DIM_100.keys():
        return Finding(claim, dims)
    (joint, is_unstable), (hierarchical, is_other_unstable) = (
        _stability([history for run in runs[label] for history in run.histories()])
        for label in DIM_100
    )
    verdict = OPEN if is_other_unstable else HOLDS if is_unstable else FAILS
    dims += _counted(min(len(runs[label]) for label in DIM_100))
    return Finding(claim, dims, f"end to end: {joint}; hierarchical: {hierarchical}", verdict)


def _stability(histories: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Describe how stable trainings are, and return whether any is unstable."""
    rollbacks = sum(history["rollbacks"] for history in histories)
    warnings = sum(len(history["warnings"]) for history in histories)
    losses = [[row["loss"] for row in history["valid"]] for history in histories]
    rise = max(curve[-1] / min(curve) for curve in losses)
    text = f"{rollbacks} rollbacks, {warnings} warnings, last loss {rise:.3f} times the best"
    return text, bool(rollbacks or warnings) or rise > RISE


CLAIMED = {
    label
    for pairs in read_page("paper/findings")["claims"].values()
    for _, first, _, second in pairs
    for label in (first, second)
}
CELEBA = needs_of([*paper_cells(1), *control_cells(1)[:1], *paper_cells(2)])
ROOMS = {name + BEDROOMS: need for name, need in needs_of(paper_cells(3)).items()}
TARGET = Target(
    "The paper's findings, checked at the size of a laptop",
    {name: need for name, need in (CELEBA | ROOMS).items() if name in CLAIMED} | BY_DELTA | DIM_100,
    check_findings,
    seeds=True,
)
