"""The paper's findings, checked one by one on what was measured here."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from submanifold.data.batches import Batches
from submanifold.data.groups import groups_of
from submanifold.evaluation.baselines import PCA
from submanifold.evaluation.intervals import mean_interval, plus_minus
from submanifold.evaluation.metrics import METRICS, is_missing
from submanifold.studies.experiments import Experiment
from submanifold.studies.tables import interval_over_seeds

Runs = Mapping[str, Sequence[Experiment]]
Verdict = Callable[[float, float], str]

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
NOT_RUN, NOT_REPORTED = "not run", "not reported"
FEWEST_SEEDS = 3
"""Fewer have no interval worth the name, and the first alone is compared."""
MATCH = 0.05
"""Bits per dimension that count as the same likelihood: the spread that the paper prints."""
OUTLIERS = 0.01
"""Share of the test pixels that are furthest from PCA's projection."""
RISE = 1.05
"""How far above its best a validation loss may end in a training that is called stable."""
ON_BEDROOMS = " on LSUN bedroom"
"""Ends the labels of the methods that were trained there; the others were on CelebA."""


LESS = {
    "Pixel rejection has fewer bits per dimension than DNF": [
        (pr, dnf, "bits_per_dim", "")
        for dnf in ("DNF", "DNF-code")
        for pr in ("PR-M", "PR-H", "PR-D")
    ],
    "Huber's penalty leaves a larger squared error than the square": [
        (square, huber, "mse", "")
        for square, huber in (("PR-M", "PR-H"), ("EE-M", "EE-H"), ("H-MM", "H-HH"))
    ],
    "Hierarchical training has fewer bits per dimension than end-to-end training": [
        (hierarchical, joint, "bits_per_dim", where)
        for where in ("", ON_BEDROOMS)
        for hierarchical, joint in (("H-MM", "EE-M"), ("H-HH", "EE-H"))
    ],
    "Hierarchical training prefers quality to diversity": [
        (less, more, metric, where)
        for where in ("", ON_BEDROOMS)
        for less, more, metric in (("EE-M", "H-MM", "precision"), ("H-MM", "EE-M", "recall"))
    ],
}
"""Claims that one method has less of a metric than another, and where."""


class Finding(NamedTuple):
    """One comparison that bears on a claim."""

    claim: str
    comparison: str
    found: str
    verdict: str


def check_findings(runs: Runs) -> tuple[pd.DataFrame, list[str]]:
    """Check every claim of the paper, on experiments by label, one for each seed.

    Returns:
        A row for each comparison, and notes on how they were made.
    """
    findings = [
        *(finding for claim in LESS for finding in _less_of_each(claim, runs)),
        *_one_block_is_enough(runs),
        *_smaller_delta_loses_outliers(runs),
        _end_to_end_is_unstable(runs),
    ]
    seeds = max(map(len, runs.values()))
    notes = [
        "A difference has the 95% interval of its mean over seeds (Student's t, the same seeds and "
        "test images on both sides) where there are at least three; otherwise of the first seed, "
        "with the two intervals over test images as if independent, which is wider than need be "
        "and does not know what another seed would change."
        if seeds > 1
        else "One seed: intervals are over test images, and do not know what another seed would "
        "change.",
        f"A claim '{HOLDS}' where the interval lies on its side of zero, '{FAILS}' where it lies "
        f"on the other, and is '{OPEN}' where it has zero inside. Likelihoods within {MATCH} bits "
        "per dimension count as the same.",
    ]
    return pd.DataFrame(findings), notes


def _less_of_each(claim: str, runs: Runs) -> list[Finding]:
    return [_compare(claim, runs, *comparison) for comparison in LESS[claim]]


def _one_block_is_enough(runs: Runs) -> list[Finding]:
    claim = "PR-D matches PR-H with fewer parameters"
    if not {"PR-D", "PR-H"} <= runs.keys():
        return [Finding(claim, "PR-D against PR-H", "", NOT_RUN)]
    one, two = (runs[name][0].load("metrics")["parameters"] for name in ("PR-D", "PR-H"))
    return [
        Finding(claim, "parameters", f"{one:,} and {two:,}", HOLDS if one < two else FAILS),
        _compare(claim, runs, "PR-D", "PR-H", "bits_per_dim", verdict=_is_zero),
        _compare(claim, runs, "PR-D", "PR-H", "kid"),
    ]


def _smaller_delta_loses_outliers(runs: Runs) -> list[Finding]:
    """Compare errors image by image, on pixels that PCA, no party here, finds hard."""
    claim = "A smaller delta reconstructs outlier pixels worse"
    by_delta = {
        float(label.removeprefix("delta = ")): each
        for label, each in runs.items()
        if label.startswith("delta = ")
    }
    if len(by_delta) < 2:
        return [Finding(claim, "two values of delta", "", NOT_RUN)]
    first = by_delta[max(by_delta)][0]
    train, test = (Batches(first.load(name), 1024) for name in ("x_train", "x_test"))
    groups = groups_of(first.groups, "test")
    pca, dim = PCA.fit(train), first.load("metrics")["dims"][-1]
    residuals = _squares(lambda x: pca.project(x, dim), test)
    outliers = residuals >= np.quantile(residuals, 1 - OUTLIERS)

    def errors(experiment: Experiment) -> np.ndarray:
        """Mean squared error of each image on its outlier pixels, NaN where it has none."""
        with np.errstate(invalid="ignore"):
            squares = _squares(experiment.load("hierarchy").project, test)
            return (squares * outliers).sum(1) / outliers.sum(1)

    *smaller, (largest, reference) = (
        (delta, [errors(each) for each in seeds]) for delta, seeds in sorted(by_delta.items())
    )
    found = []
    for delta, seeds in smaller:
        pairs = zip(seeds, reference, strict=False)
        differences = [(a - b)[np.isfinite(a)] for a, b in pairs]
        comparison = f"delta {delta} against {largest}, on {OUTLIERS:.0%} of the pixels"
        comparison += _counted(len(differences))
        if len(differences) >= FEWEST_SEEDS:
            difference = interval_over_seeds([float(each.mean()) for each in differences])
        else:
            finite = np.isfinite(seeds[0])
            difference = mean_interval(differences[0], None if groups is None else groups[finite])
        found.append(_judge(claim, comparison, difference, "mse", _is_above))
    return found


@torch.no_grad()
def _squares(project: Callable[[torch.Tensor], torch.Tensor], test: Batches) -> np.ndarray:
    """Squared errors of a projection, (N, D)."""
    return torch.cat([(x - project(x)).square().flatten(1) for x in test]).numpy()


def _end_to_end_is_unstable(runs: Runs) -> Finding:
    claim = "End-to-end training at d = 100 is unstable where the hierarchical one is not"
    labels = "end-to-end training", "hierarchical training"
    if not runs.keys() >= set(labels):
        return Finding(claim, "3072 → 500 → 100", "", NOT_RUN)
    joint, hierarchical = (
        [history for each in runs[label] for history in each.histories()] for label in labels
    )
    unstable = [any(map(_is_unstable, histories)) for histories in (joint, hierarchical)]
    return Finding(
        claim,
        "3072 → 500 → 100" + _counted(min(len(runs[label]) for label in labels)),
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
        f"{rollbacks} rollbacks, {warnings} warnings, validation loss at the end "
        f"{max(map(_rise, histories)):.3f} of its best, largest gradient {spike:.1f} of the median"
    )


def _is_below(low: float, high: float) -> str:
    return HOLDS if high < 0 else FAILS if low > 0 else OPEN


def _is_above(low: float, high: float) -> str:
    return _is_below(-high, -low)


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
    verdict: Verdict = _is_below,
) -> Finding:
    """Judge the difference of a metric between two methods."""
    comparison = f"{one} against {other}{where}"
    if not {one + where, other + where} <= runs.keys():
        return Finding(claim, comparison, "", NOT_RUN)
    pairs = [
        [each.load("metrics")[metric] for each in pair]
        for pair in zip(runs[one + where], runs[other + where], strict=False)
    ]
    comparison += _counted(len(pairs))
    return _judge(claim, comparison, _difference(pairs), metric, verdict)


def _difference(pairs: Sequence[Sequence[Mapping[str, Any]]]) -> Mapping[str, Any]:
    """Mean difference of one number between two methods, and its 95% interval."""
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
    claim: str, comparison: str, difference: Mapping[str, Any], metric: str, verdict: Verdict
) -> Finding:
    """Judge a claim by the interval of a difference."""
    if is_missing(difference["value"]):
        return Finding(claim, comparison, "", NOT_REPORTED)
    found = METRICS[metric].write(difference, signed=True, label=True)
    known = not is_missing(difference.get("low"))
    judged = verdict(difference["low"], difference["high"]) if known else OPEN
    return Finding(claim, comparison, found, judged)


def _counted(seeds: int) -> str:
    """Say how many seeds a comparison is of, where it uses them."""
    return f", {seeds} seeds" if seeds >= FEWEST_SEEDS else ""
