"""The paper's findings, checked one by one on what was measured here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from submanifold.data.batches import Batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.manifold import PCA
from submanifold.reproduction.experiments import Experiment
from submanifold.reproduction.tables import half_width

Runs = Mapping[str, Sequence[Experiment]]

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
NOT_RUN = "not run"
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
FORMS = {"bits_per_dim": "{:+.3f} BPD", "mse": "{:+.5f} MSE", "kid": "{:+.3f} KID"}


class Finding(NamedTuple):
    """One comparison that bears on a claim."""

    claim: str
    comparison: str
    found: str
    verdict: str


def check_findings(runs: Runs) -> tuple[pd.DataFrame, list[str]]:
    """Check every claim of the paper.

    Args:
        runs: Experiments by label, one for each seed: the methods of tables 1 and 2, those of
            table 3 with :data:`ON_BEDROOMS`, PR-D by delta and both trainings down to 100
            dimensions.

    Returns:
        A row for each comparison, and notes on how they were made.
    """
    findings = [
        *_likelihood_against_dnf(runs),
        *_huber_reconstructs_worse(runs),
        *_one_block_is_enough(runs),
        *_hierarchical_training_is_better(runs),
        *_smaller_delta_loses_outliers(runs),
        _end_to_end_is_unstable(runs),
        *_quality_over_diversity(runs),
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


def _likelihood_against_dnf(runs: Runs) -> list[Finding]:
    claim = "Pixel rejection has fewer bits per dimension than DNF"
    return [
        _less(claim, runs, pr, dnf, "bits_per_dim")
        for dnf in ("DNF", "DNF-code")
        for pr in ("PR-M", "PR-H", "PR-D")
    ]


def _huber_reconstructs_worse(runs: Runs) -> list[Finding]:
    claim = "Huber's penalty leaves a larger squared error than the square"
    pairs = [("PR-M", "PR-H"), ("EE-M", "EE-H"), ("H-MM", "H-HH")]
    return [_less(claim, runs, square, huber, "mse") for square, huber in pairs]


def _one_block_is_enough(runs: Runs) -> list[Finding]:
    claim = "PR-D matches PR-H with fewer parameters"
    if not {"PR-D", "PR-H"} <= runs.keys():
        return [Finding(claim, "PR-D against PR-H", "", NOT_RUN)]
    one, two = (runs[name][0].load("metrics")["parameters"] for name in ("PR-D", "PR-H"))
    mean, low, high = _difference(runs, "PR-D", "PR-H", "bits_per_dim")
    inside, outside = low >= -MATCH and high <= MATCH, low > MATCH or high < -MATCH
    return [
        Finding(claim, "parameters", f"{one:,} and {two:,}", HOLDS if one < two else FAILS),
        Finding(
            claim,
            "PR-D against PR-H" + _counted(min(len(runs["PR-D"]), len(runs["PR-H"]))),
            _written(mean, low, high, "bits_per_dim"),
            HOLDS if inside else FAILS if outside else OPEN,
        ),
        _less(claim, runs, "PR-D", "PR-H", "kid"),
    ]


def _hierarchical_training_is_better(runs: Runs) -> list[Finding]:
    claim = "Hierarchical training has fewer bits per dimension than end-to-end training"
    pairs = [("H-MM", "EE-M"), ("H-HH", "EE-H")]
    return [
        _less(claim, runs, hierarchical, joint, "bits_per_dim", where)
        for where in ("", ON_BEDROOMS)
        for hierarchical, joint in pairs
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
    largest = by_delta[max(by_delta)]
    train, test = (Batches(largest[0].load(name), 1024) for name in ("x_train", "x_test"))
    pca, d = PCA.fit(train), largest[0].load("metrics")["dims"][-1]
    residuals = np.concatenate([_squared(x, pca.project(x, d)) for x in test])
    outliers = residuals >= np.quantile(residuals, 1 - OUTLIERS)
    errors = {
        delta: [_outlier_errors(each, test, outliers) for each in seeds]
        for delta, seeds in by_delta.items()
    }
    found = []
    for delta in sorted(errors)[:-1]:
        differences = [
            (one - other)[np.isfinite(one)]
            for one, other in zip(errors[delta], errors[max(errors)], strict=False)
        ]
        if len(differences) >= FEWEST_SEEDS:
            mean, low, high = _over_seeds([float(each.mean()) for each in differences])
        else:
            interval = mean_interval(differences[0])
            mean, low, high = (interval[key] for key in ("value", "low", "high"))
        comparison = f"delta {delta} against {max(errors)}, on {OUTLIERS:.0%} of the pixels"
        found.append(
            Finding(
                claim,
                comparison + _counted(len(differences)),
                _written(mean, low, high, "mse"),
                _verdict(-high, -low),
            )
        )
    return found


@torch.no_grad()
def _outlier_errors(experiment: Experiment, test: Batches, outliers: np.ndarray) -> np.ndarray:
    """Mean squared error of each image on its outlier pixels, not finite where it has none."""
    hierarchy = experiment.load("hierarchy")
    squares = np.concatenate([_squared(x, hierarchy.project(x)) for x in test])
    with np.errstate(invalid="ignore"):
        return (squares * outliers).sum(1) / outliers.sum(1)


def _squared(x: torch.Tensor, projection: torch.Tensor) -> np.ndarray:
    return (x - projection).square().flatten(1).numpy()


def _end_to_end_is_unstable(runs: Runs) -> Finding:
    claim = "End-to-end training at d = 100 is unstable where the hierarchical one is not"
    labels = "end-to-end training", "hierarchical training"
    if not runs.keys() >= set(labels):
        return Finding(claim, "3072 → 500 → 100", "", NOT_RUN)
    joint, hierarchical = (
        [history for each in runs[label] for history in each.histories()] for label in labels
    )
    told = [_stability(histories) for histories in (joint, hierarchical)]
    unstable = [any(map(_is_unstable, histories)) for histories in (joint, hierarchical)]
    verdict = HOLDS if unstable == [True, False] else OPEN if unstable[1] else FAILS
    return Finding(
        claim,
        "3072 → 500 → 100" + _counted(min(len(runs[label]) for label in labels)),
        f"end to end: {told[0]}; hierarchical: {told[1]}",
        verdict,
    )


def _is_unstable(history: Mapping[str, Any]) -> bool:
    return history["setbacks"] > 0 or bool(history["warnings"]) or _rise(history) > RISE


def _rise(history: Mapping[str, Any]) -> float:
    losses = [row["loss"] for row in history["valid"]]
    return losses[-1] / min(losses)


def _stability(histories: Sequence[Mapping[str, Any]]) -> str:
    setbacks = sum(history["setbacks"] for history in histories)
    warnings = sum(len(history["warnings"]) for history in histories)
    norms = [[row["gradient_norm"] for row in history["train"][5:]] for history in histories]
    spike = max((max(each) / float(np.median(each)) for each in norms if each), default=math.nan)
    return (
        f"{setbacks} setbacks, {warnings} warnings, validation loss at the end "
        f"{max(map(_rise, histories)):.3f} of its best, largest gradient {spike:.1f} of the median"
    )


def _quality_over_diversity(runs: Runs) -> list[Finding]:
    claim = "Hierarchical training prefers quality to diversity"
    return [
        _less(claim, runs, less, more, metric, where)
        for where in ("", ON_BEDROOMS)
        for less, more, metric in (("EE-M", "H-MM", "precision"), ("H-MM", "EE-M", "recall"))
    ]


def _less(claim: str, runs: Runs, less: str, more: str, metric: str, where: str = "") -> Finding:
    """Check that one method has less of a metric than another."""
    one, other = less + where, more + where
    if not {one, other} <= runs.keys():
        return Finding(claim, f"{less} against {more}{where}", "", NOT_RUN)
    mean, low, high = _difference(runs, one, other, metric)
    seeds = _counted(min(len(runs[one]), len(runs[other])))
    comparison = f"{less} against {more}{where}{seeds}"
    return Finding(claim, comparison, _written(mean, low, high, metric), _verdict(low, high))


def _verdict(low: float, high: float) -> str:
    """Judge a claim that a difference is below zero."""
    return HOLDS if high < 0 else FAILS if low > 0 else OPEN


def _difference(runs: Runs, one: str, other: str, metric: str) -> tuple[float, float, float]:
    """Mean difference of a metric between two methods, and its 95% interval."""
    pairs = [
        tuple(each.load("metrics")[metric] for each in pair)
        for pair in zip(runs[one], runs[other], strict=False)
    ]
    differences = [a["value"] - b["value"] for a, b in pairs]
    if len(pairs) >= FEWEST_SEEDS:
        return _over_seeds(differences)
    half = math.hypot(*((each["high"] - each["low"]) / 2 for each in pairs[0]))
    return differences[0], differences[0] - half, differences[0] + half


def _over_seeds(differences: Sequence[float]) -> tuple[float, float, float]:
    mean, half = float(np.mean(differences)), half_width(differences)
    return mean, mean - half, mean + half


def _counted(seeds: int) -> str:
    """Say how many seeds a comparison is of, where it uses them."""
    return f", {seeds} seeds" if seeds >= FEWEST_SEEDS else ""


def _written(mean: float, low: float, high: float, metric: str) -> str:
    form = FORMS.get(metric, "{:+.3f} " + metric)
    number = form.split(" ")[0]
    return f"{form.format(mean)} [{number.format(low)}, {number.format(high)}]"
