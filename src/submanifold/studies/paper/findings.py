"""The paper's findings, each checked on the models trained here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from submanifold.data.batches import Batches
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA
from submanifold.evaluation.intervals import mean_interval, plus_minus
from submanifold.evaluation.metrics import METRICS, is_missing
from submanifold.studies.pages import Content, Runs, Target
from submanifold.studies.paper.figures import BY_DELTA, DIM_100, by_delta
from submanifold.studies.paper.tables import control_cells, needs_of, paper_cells
from submanifold.studies.seeds import interval_over_seeds

Interval = Mapping[str, Any]
Verdict = Callable[[float, float], str]

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
NOT_RUN, NOT_REPORTED = "not run", "not reported"
FEWEST_SEEDS = 3
"""With fewer seeds only the first is compared."""
MATCH = 0.05
"""Bits per dimension that count as equal: the spread that the paper prints."""
OUTLIERS = 0.01
"""Fraction of the test pixels furthest from their PCA projection."""
RISE = 1.05
"""Largest ratio of the last validation loss to the best in a stable training."""
BEDROOMS = " on LSUN bedroom"
"""Suffix of the labels of methods trained on LSUN bedroom; the others are trained on CelebA."""

LESS = {
    "Pixel rejection has fewer bits per dimension than DNF": [
        (pr, dnf, "bits_per_dim", "")
        for dnf in ("DNF", "DNF-code")
        for pr in ("PR-M", "PR-H", "PR-D")
    ],
    "The Huber penalty leaves a larger squared error than the square": [
        (square, huber, "mse", "")
        for square, huber in (("PR-M", "PR-H"), ("EE-M", "EE-H"), ("H-MM", "H-HH"))
    ],
    "Hierarchical training has fewer bits per dimension than end-to-end training": [
        (hierarchical, joint, "bits_per_dim", where)
        for where in ("", BEDROOMS)
        for hierarchical, joint in (("H-MM", "EE-M"), ("H-HH", "EE-H"))
    ],
    "Hierarchical training favours quality over diversity": [
        (less, more, metric, where)
        for where in ("", BEDROOMS)
        for less, more, metric in (("EE-M", "H-MM", "precision"), ("H-MM", "EE-M", "recall"))
    ],
}
"""Claims that the first method has less of a metric than the second."""


class Finding(NamedTuple):
    """One comparison that bears on a claim."""

    claim: str
    comparison: str
    found: str
    verdict: str


def check_findings(runs: Runs) -> Content:
    """Check every claim of the paper; the table has one row for each comparison."""
    table = pd.DataFrame([
        *(_compare(claim, runs, *pair) for claim, pairs in LESS.items() for pair in pairs),
        *one_block_is_enough(runs),
        *smaller_delta_loses_outliers(runs),
        end_to_end_is_unstable(runs),
    ])  # fmt: skip
    intervals = "Intervals are over test images, and ignore the variation between seeds."
    if max(map(len, runs.values())) > 1:
        intervals = (
            "With three or more seeds the 95% interval of a difference is that of its mean over "
            "seeds (Student's t; the same seeds and test images on both sides). With fewer, only "
            "the first seed is used, with the two intervals over test images combined as if "
            "independent; this interval is too wide and ignores the variation between seeds."
        )
    verdicts = (
        f"A claim '{HOLDS}' if the interval lies on its side of zero, '{FAILS}' if it lies on the "
        f"other, and is '{OPEN}' if the interval includes zero. Likelihoods within {MATCH} bits "
        "per dimension count as equal."
    )
    return Content({"The paper's findings": table}, data=table, notes=[intervals, verdicts])


def one_block_is_enough(runs: Runs) -> list[Finding]:
    """Compare parameters, likelihood and KID of PR-D and PR-H."""
    claim = "PR-D matches PR-H with fewer parameters"
    if not {"PR-D", "PR-H"} <= runs.keys():
        return [Finding(claim, "PR-D against PR-H", "", NOT_RUN)]
    one, two = (runs[name][0].load("metrics")["parameters"] for name in ("PR-D", "PR-H"))
    return [
        Finding(claim, "parameters", f"{one:,} and {two:,}", HOLDS if one < two else FAILS),
        _compare(claim, runs, "PR-D", "PR-H", "bits_per_dim", verdict=_is_zero),
        _compare(claim, runs, "PR-D", "PR-H", "kid"),
    ]


def smaller_delta_loses_outliers(runs: Runs) -> Iterator[Finding]:
    """Compare the errors of each image on the pixels with the largest PCA errors."""
    claim = "A smaller delta reconstructs outlier pixels worse"
    deltas = by_delta(runs)
    if len(deltas) < 2:
        yield Finding(claim, "two values of delta", "", NOT_RUN)
        return
    first = deltas[max(deltas)][0]
    train, test = (Batches(first.load(name), 1024) for name in ("x_train", "x_test"))
    groups = groups_of(first.groups, "test")
    pca, dim = PCA.fit(train), first.load("metrics")["dims"][-1]
    residuals = _squares(lambda x: pca.project(x, dim), test)
    outliers = residuals >= np.quantile(residuals, 1 - OUTLIERS)

    def errors(model: Any) -> np.ndarray:
        """Mean squared error of each image on its outlier pixels, NaN if it has none."""
        with np.errstate(invalid="ignore"):
            return (_squares(model.project, test) * outliers).sum(1) / outliers.sum(1)

    *smaller, (largest, reference) = (
        (delta, [errors(run.load("hierarchy")) for run in seeds])
        for delta, seeds in sorted(deltas.items())
    )
    for delta, seeds in smaller:
        differences = [(a - b)[np.isfinite(a)] for a, b in zip(seeds, reference, strict=False)]
        if len(differences) >= FEWEST_SEEDS:
            difference = interval_over_seeds([float(each.mean()) for each in differences])
        else:
            finite = np.isfinite(seeds[0])
            difference = mean_interval(differences[0], None if groups is None else groups[finite])
        comparison = f"delta {delta} against {largest}, on {OUTLIERS:.0%} of the pixels"
        comparison += _counted(len(differences))
        yield _judge(claim, comparison, difference, "mse", lambda low, high: _is_less(-high, -low))


@torch.no_grad()
def _squares(project: Callable[[torch.Tensor], torch.Tensor], test: Batches) -> np.ndarray:
    """Squared errors of a projection, (N, D)."""
    return torch.cat([(x - project(x)).square().flatten(1) for x in test]).numpy()


def end_to_end_is_unstable(runs: Runs) -> Finding:
    """Compare the training histories of both ways of training at d = 100."""
    claim = "End-to-end training at d = 100 is unstable, hierarchical training is not"
    dims = "3072 → 500 → 100"
    if not runs.keys() >= DIM_100.keys():
        return Finding(claim, dims, "", NOT_RUN)
    joint, hierarchical = (
        [history for run in runs[label] for history in run.histories()] for label in DIM_100
    )
    unstable = [any(map(_is_unstable, histories)) for histories in (joint, hierarchical)]
    return Finding(
        claim,
        dims + _counted(min(len(runs[label]) for label in DIM_100)),
        f"end to end: {_stability(joint)}; hierarchical: {_stability(hierarchical)}",
        HOLDS if unstable == [True, False] else OPEN if unstable[1] else FAILS,
    )


def _is_unstable(history: Mapping[str, Any]) -> bool:
    return history["rollbacks"] > 0 or bool(history["warnings"]) or _rise(history) > RISE


def _rise(history: Mapping[str, Any]) -> float:
    losses = [row["loss"] for row in history["valid"]]
    return losses[-1] / min(losses)


def _stability(histories: Sequence[Mapping[str, Any]]) -> str:
    rollbacks = sum(history["rollbacks"] for history in histories)
    warnings = sum(len(history["warnings"]) for history in histories)
    norms = [[row["gradient_norm"] for row in history["train"][5:]] for history in histories]
    spike = max((max(each) / float(np.median(each)) for each in norms if each), default=math.nan)
    return (
        f"{rollbacks} rollbacks, {warnings} warnings, last validation loss "
        f"{max(map(_rise, histories)):.3f} times the best, largest gradient norm {spike:.1f} times "
        "the median"
    )


def _is_less(low: float, high: float) -> str:
    return HOLDS if high < 0 else FAILS if low > 0 else OPEN


def _is_zero(low: float, high: float) -> str:
    if low > MATCH or high < -MATCH:
        return FAILS
    return HOLDS if low >= -MATCH and high <= MATCH else OPEN


def _compare(
    claim: str,
    runs: Runs,
    one: str,
    other: str,
    metric: str,
    where: str = "",
    verdict: Verdict = _is_less,
) -> Finding:
    """Judge the difference of a metric between two methods."""
    comparison = f"{one} against {other}{where}"
    if not {one + where, other + where} <= runs.keys():
        return Finding(claim, comparison, "", NOT_RUN)
    pairs = [
        [run.load("metrics")[metric] for run in pair]
        for pair in zip(runs[one + where], runs[other + where], strict=False)
    ]
    comparison += _counted(len(pairs))
    return _judge(claim, comparison, _difference(pairs), metric, verdict)


def _difference(pairs: Sequence[Sequence[Interval]]) -> Interval:
    """Mean difference of a number between two methods, with its 95% interval."""
    pairs = pairs if len(pairs) >= FEWEST_SEEDS else pairs[:1]
    if any(is_missing(each["value"]) for pair in pairs for each in pair):
        return {"value": None}
    differences = [a["value"] - b["value"] for a, b in pairs]
    if len(pairs) > 1:
        return interval_over_seeds(differences)
    if any(is_missing(each["low"]) for each in pairs[0]):
        return {"value": differences[0]}
    return plus_minus(differences[0], math.hypot(*(x["high"] - x["low"] for x in pairs[0])) / 2)


def _judge(
    claim: str, comparison: str, difference: Interval, metric: str, verdict: Verdict
) -> Finding:
    if is_missing(difference["value"]):
        return Finding(claim, comparison, "", NOT_REPORTED)
    found = METRICS[metric].write(difference, signed=True, label=True)
    known = not is_missing(difference.get("low"))
    judged = verdict(difference["low"], difference["high"]) if known else OPEN
    return Finding(claim, comparison, found, judged)


def _counted(seeds: int) -> str:
    return f", {seeds} seeds" if seeds >= FEWEST_SEEDS else ""


TARGET = Target(
    "The paper's findings, checked",
    {
        **needs_of([*paper_cells(1), *control_cells(1)[:1], *paper_cells(2)]),
        **BY_DELTA,
        **DIM_100,
        **{
            name + BEDROOMS: need
            for name, need in needs_of(paper_cells(3)).items()
            if name != "DNF"
        },
    },
    check_findings,
    seeds=True,
)
