"""Detection of out-of-distribution (OOD) images by a model's and by linear anomaly scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from submanifold.evaluation.baselines import fit_gaussian, pca_batches
from submanifold.evaluation.calibration import COMBINATION, Calibration, false_alarms
from submanifold.evaluation.intervals import interval_level
from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.scores import SCORES, score
from submanifold.models import Model

LINEAR = {
    "pca_distance": "mean squared error of PCA with the model's dimension, pixels in [0, 1]",
    "pca_residual": "mean squared error of PCA with 90% of the variance, pixels in [0, 1]",
    "hotelling": "Hotelling's T^2 of the same coordinates",
    "mahalanobis": "-log density of a Gaussian, nats",
}
ANOMALY = "anomaly_score"
"""The score of ``submanifold score``, by the calibration of the model's file."""
EXPLAINED_VARIANCE = 0.9
LINEAR_COMBINATION = "linear_combination"
COMBINED = tuple(name for name in SCORES if name != "typicality")
MEASURES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "false_positives": "false positives at 95% recall",
}
NORMAL, OOD = "normal", "ood"
RESAMPLES = 200
MAX_IMAGES, MAX_ROWS = 500, 2000
"""Events of each part, because a nearest projection costs about twenty encodings."""


def score_parts(
    model: Model, train: np.ndarray, valid: np.ndarray, test: np.ndarray, ood: np.ndarray,
    names: Sequence[str] = COMBINED, groups: np.ndarray | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Score normal and out-of-distribution events; only normal events calibrate the scores.

    Linear scores are fitted to the training data. Events are uint8 images or float vectors
    (N, ...), of which the first 500 or 2,000 of each part and of the validation data with their
    group numbers are used. A calibrated model adds :data:`ANOMALY`.

    Returns:
        One row per event: ``part`` ("normal" or "ood"), ``number`` in its array, scores by name and
        their p-values as ``p_<name>``.
    """
    linear = _linear_scores(model.dim, train, valid)
    most = MAX_IMAGES if test.dtype == np.uint8 else MAX_ROWS
    valid, groups = valid[:most], None if groups is None else groups[:most]
    calibration = Calibration.fit(score(model, valid, names), names, groups)
    linear_calibration = Calibration.fit(linear(valid), tuple(LINEAR), groups)
    tables = []
    for part, images in {NORMAL: test[:most], OOD: ood[:most]}.items():
        scores = calibration.complete(score(model, images, names))
        p_values = {f"p_{name}": calibration.p_values(name, scores[name]) for name in scores}
        for known in _stored_calibration(model, names):
            scores[ANOMALY] = known.complete(scores)[COMBINATION]
            p_values[f"p_{ANOMALY}"] = known.p_values(COMBINATION, scores[ANOMALY])
        linear_scores = linear_calibration.complete(linear(images))
        for name in (*LINEAR, COMBINATION):
            column = LINEAR_COMBINATION if name == COMBINATION else name
            scores[column] = linear_scores[name]
            p_values[f"p_{column}"] = linear_calibration.p_values(name, linear_scores[name])
        index = {"part": part, "number": np.arange(len(images))}
        tables.append(pd.DataFrame({**index, **scores, **p_values}))
    return pd.concat(tables, ignore_index=True)


def _stored_calibration(model: Model, names: Sequence[str]) -> list[Calibration]:
    """Return the calibration of the model's file; none if it combines other or all scores."""
    if "groups" not in model.calibration:
        return []
    found = Calibration.from_dict(model.calibration)
    return [found] if {*found.combined} < {*names} else []


def _linear_scores(
    dim: int, train: np.ndarray, valid: np.ndarray
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    pca, _ = fit_gaussian(train, valid)
    few = pca.explaining(EXPLAINED_VARIANCE)
    dim = min(dim, pca.axes.shape[1])

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        batches = pca_batches(images)
        return {
            "pca_distance": per_event(lambda x: pca.squared_errors(x)[:, dim], batches),
            "pca_residual": per_event(lambda x: pca.squared_errors(x)[:, few], batches),
            "hotelling": per_event(lambda x: pca.hotelling(x, few), batches),
            "mahalanobis": -per_event(pca.log_prob, batches),
        }

    return scores


def add_groups(
    scored: pd.DataFrame, normal: np.ndarray | None, ood: np.ndarray | None
) -> pd.DataFrame:
    """Add the column ``group``; images of a part without groups are single groups."""
    if normal is None and ood is None:
        return scored
    counts = scored["part"].value_counts()
    columns = [
        np.arange(counts[part]) if groups is None else groups[: counts[part]]
        for part, groups in {NORMAL: normal, OOD: ood}.items()
    ]
    return scored.assign(group=np.concatenate(columns))


def measure_ood(
    scored: pd.DataFrame, calibration: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Measure how well each score of a table of :func:`score_parts` separates the parts.

    The calibration is that of the model's file.

    Returns:
        ``counts`` by part; ``scores`` by name: ``auroc``, ``average_precision`` of OOD images and
        ``false_positives``, the fraction of normal images above the threshold that 95% of the OOD
        images reach, each with its 95% bootstrap interval; with a column ``group``, the bootstrap
        is over groups, and ``groups`` are their counts by part. With a calibration, ``alarms`` has,
        for each promised ``rate`` of false alarms, the observed rate of ``false_alarms`` of normal
        images and the rate of ``detected`` OOD images, each with its 95% interval, and the range
        of the ``expected`` rate of false alarms.
    """
    calibration = calibration or {}
    is_ood = (scored["part"] == OOD).to_numpy()
    rows = {NORMAL: np.flatnonzero(~is_ood), OOD: np.flatnonzero(is_ood)}
    numbers = scored["group"].to_numpy() if "group" in scored else np.arange(len(scored))
    groups = {part: _split_by_group(each, numbers) for part, each in rows.items()}
    counts = {part: len(each) for part, each in groups.items()}
    level: float | None = 0.025
    found: dict[str, Any] = {"counts": {part: len(each) for part, each in rows.items()}}
    if "group" in scored:
        found["groups"], level = counts, interval_level(min(counts.values()))
    names = [str(column) for column in scored if f"p_{column}" in scored]
    found["scores"] = {
        name: _measure_score(scored[name].to_numpy(), [groups[OOD], groups[NORMAL]], level)
        for name in names
    }
    if ANOMALY in found["scores"] and "groups" in calibration:
        found["alarms"] = _alarms(scored, Calibration.from_dict(calibration))
    return found


def _alarms(scored: pd.DataFrame, calibration: Calibration) -> list[dict[str, Any]]:
    """Return the rates at which ``submanifold score`` flags the images of both parts."""
    of_part = []
    for part in (NORMAL, OOD):
        own = scored[scored["part"] == part]
        groups = own["group"].to_numpy() if "group" in own else None
        of_part.append(false_alarms(own[f"p_{ANOMALY}"].to_numpy(), calibration.groups, groups))
    return [{"rate": normal["rate"], "false_alarms": normal["observed"],
             "expected": normal["expected"], "detected": ood["observed"]}
            for normal, ood in zip(*of_part, strict=True)]  # fmt: skip


def _measure_score(
    values: np.ndarray, groups: list[list[np.ndarray]], level: float | None
) -> dict[str, Any]:
    """Compute :data:`MEASURES` with intervals by resampling the groups of each part."""
    ranks = _ranks(values)
    rows = [np.concatenate(part) for part in groups]
    members = [np.repeat(np.arange(len(part)), [len(each) for each in part]) for part in groups]

    def measures(weights: list[np.ndarray]) -> tuple[float, float, float]:
        """Compute the measures with weights of the groups."""
        by_rank = (
            np.bincount(ranks[own], weight[group], ranks.max() + 1)[::-1]
            for own, group, weight in zip(rows, members, weights, strict=True)
        )
        return _measures(*by_rank)

    ends = np.full((2, len(MEASURES)), None)
    if level is not None:
        rng, counts = np.random.default_rng(0), [len(part) for part in groups]
        resampled = [
            measures([np.bincount(rng.integers(n, size=n), minlength=n) for n in counts])
            for _ in range(RESAMPLES)
        ]
        ends = np.quantile(resampled, [level, 1 - level], axis=0)
    found = measures([np.ones(len(part)) for part in groups])
    columns = zip(MEASURES, found, *ends.tolist(), strict=True)
    return {
        name: {"value": value, "low": low, "high": high, "n": len(values)}
        for name, value, low, high in columns
    }


def _split_by_group(rows: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    ordered = rows[np.argsort(groups[rows], kind="stable")]
    return np.split(ordered, np.flatnonzero(np.diff(groups[ordered])) + 1)


def roc(normal: np.ndarray, ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute false and true positive rates of a score for all thresholds."""
    is_ood = np.repeat([0, 1], [len(normal), len(ood)])
    false, true, _ = roc_curve(is_ood, _ranks(np.concatenate([normal, ood])))
    return false, true


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0, equal for equal values; NaN and infinity have the highest rank."""
    finite = np.nan_to_num(values, nan=np.finfo(np.float64).max)
    return np.unique(finite, return_inverse=True)[1]


def _measures(ood: np.ndarray, normal: np.ndarray) -> tuple[float, float, float]:
    """Compute :data:`MEASURES` from numbers of OOD and normal events by rank, the highest first."""
    true, false = ood.cumsum(), normal.cumsum()
    auroc = (normal * (true - ood / 2)).sum() / (true[-1] * false[-1])
    average = (ood * true / np.maximum(true + false, 1)).sum() / true[-1]
    at_recall = false[np.argmax(true / true[-1] >= 0.95)] / false[-1]
    return float(auroc), float(average), float(at_recall)


def describe_scores(scored: Mapping[str, Any]) -> dict[str, str]:
    """Describe the scores in a mapping by name, in a fixed order."""
    known = {
        **SCORES,
        COMBINATION: "joint distribution of these scores on validation images",
        ANOMALY: "joint distribution of the scores without nearest projections and Jacobians, as "
        "in submanifold score",
        **LINEAR,
        LINEAR_COMBINATION: "joint distribution of the linear scores on validation images",
    }
    return {name: text for name, text in known.items() if name in scored}
