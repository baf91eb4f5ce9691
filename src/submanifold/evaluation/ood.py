"""Detection of out-of-distribution (OOD) images by a model's and by linear anomaly scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from submanifold.common.device import choose_device
from submanifold.data.events import EventsLike, as_events
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.calibration import COMBINATION, Calibration, false_alarms
from submanifold.evaluation.intervals import interval_level
from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.scores import SCORES, score
from submanifold.models import Model

LINEAR = {
    "pca_distance": "mean squared error of PCA with the model's dimension",
    "pca_residual": "mean squared error of PCA with 90% of the variance",
    "hotelling": "Hotelling's T^2 of the same coordinates",
    "mahalanobis": "-log density of a Gaussian, nats",
}
ANOMALY = "anomaly_score"  # of the command score, by the calibration of the model's file
EXPLAINED_VARIANCE = 0.9
LINEAR_COMBINATION = "linear_combination"
COMBINED = tuple(name for name in SCORES if name != "typicality")
DESCRIPTIONS = {
    **SCORES,
    COMBINATION: "joint distribution of these scores on validation data",
    ANOMALY: "joint distribution of the scores without nearest projections and Jacobians, as in "
    "submanifold score",
    **LINEAR,
    LINEAR_COMBINATION: "joint distribution of the linear scores on validation data",
}
"""Descriptions of all scores by name, in the order of tables."""
MEASURES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "false_positives": "false positives at 95% recall",
}
NORMAL, OOD = "normal", "ood"
RESAMPLES = 200
MAX_IMAGES, MAX_ROWS = 500, 2000  # of each part: a nearest projection costs twenty encodings


def score_parts(
    model: Model,
    train: EventsLike,
    valid: EventsLike,
    test: EventsLike,
    ood: EventsLike,
    names: Sequence[str] = COMBINED,
    device: str | None = None,
) -> pd.DataFrame:
    """Score normal and out-of-distribution events; only normal events calibrate the scores.

    Linear scores are fitted to the training data. The first 500 images or 2,000 rows of each part
    and of the validation data are used. A calibrated model adds :data:`ANOMALY`. The columns are
    ``part`` ("normal" or "ood"), ``number`` in its array, scores and their p-values ``p_<name>``,
    and with groups ``group``; images of a part without groups are single groups.
    """
    model = model if device is None else model.to(choose_device(device))
    train, valid, test, ood = map(as_events, (train, valid, test, ood))
    linear = _linear_scores(model.dim, train.x, valid.x)
    most = MAX_IMAGES if test.x.dtype == np.uint8 else MAX_ROWS
    valid, test, ood = valid[:most], test[:most], ood[:most]
    has_groups = test.groups is not None or ood.groups is not None
    calibration = Calibration.fit(score(model, valid, names), names, valid.groups)
    linear_calibration = Calibration.fit(linear(valid.x), tuple(LINEAR), valid.groups)
    stored = Calibration.of(model)
    tables = []
    for part, events in ((NORMAL, test), (OOD, ood)):
        scores = calibration.complete(score(model, events, names))
        p_values = {f"p_{name}": calibration.p_values(name, scores[name]) for name in scores}
        if stored and {*stored.combined} < {*names}:
            scores[ANOMALY] = stored.complete(scores)[COMBINATION]
            p_values[f"p_{ANOMALY}"] = stored.p_values(COMBINATION, scores[ANOMALY])
        linear_scores = linear_calibration.complete(linear(events.x))
        for name in (*LINEAR, COMBINATION):
            column = LINEAR_COMBINATION if name == COMBINATION else name
            scores[column] = linear_scores[name]
            p_values[f"p_{column}"] = linear_calibration.p_values(name, linear_scores[name])
        number = np.arange(len(events))
        columns = {"part": part, "number": number, **scores, **p_values}
        if has_groups:
            columns["group"] = number if events.groups is None else events.groups
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _linear_scores(
    dim: int, train: np.ndarray, valid: np.ndarray
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    pca = PCA.fit(train).shrink(valid)
    few = pca.explaining(EXPLAINED_VARIANCE)
    dims = [min(dim, pca.axes.shape[1]), few]

    def columns(x: Tensor) -> Tensor:
        errors = pca.squared_errors(x)[:, dims].T
        return torch.stack([*errors, pca.hotelling(x, few), -pca.log_prob(x)], 1)

    return lambda images: dict(zip(LINEAR, per_event(columns, pca_batches(images)).T, strict=True))


def measure_ood(scored: pd.DataFrame, model: Model | None = None) -> dict[str, Any]:
    """Measure how well each score of a table of :func:`score_parts` separates the parts.

    The ``scores`` have an ``auroc``, an ``average_precision`` of OOD images, and the fraction
    ``false_positives`` of normal images above the threshold that 95% of the OOD images reach, each
    with its 95% bootstrap interval, which with a column ``group`` is over groups. With the
    calibration of the model, ``alarms`` has, for each promised ``rate``, the rates of
    ``false_alarms`` of normal images and of ``detected`` OOD images, and the ``expected`` range.
    """
    rows = {part: np.flatnonzero(scored["part"] == part) for part in (NORMAL, OOD)}
    measured: dict[str, Any] = {"counts": {part: len(of_part) for part, of_part in rows.items()}}
    numbers = scored["group"].to_numpy() if "group" in scored else np.arange(len(scored))
    groups = {part: np.unique(numbers[rows[part]], return_inverse=True)[1] for part in rows}
    level: float | None = 0.025
    if "group" in scored:
        measured["groups"] = {part: int(of_part.max()) + 1 for part, of_part in groups.items()}
        level = interval_level(min(measured["groups"].values()))
    measured["scores"] = {
        str(name): _measure_score(scored[name].to_numpy(), rows, groups, level)
        for name in scored
        if f"p_{name}" in scored
    }
    stored = None if model is None else Calibration.of(model)
    if stored is not None and ANOMALY in measured["scores"]:
        by_part = []
        for of_part in rows.values():
            p_values = scored[f"p_{ANOMALY}"].to_numpy()[of_part]
            of_groups = numbers[of_part] if "group" in scored else None
            alarms = false_alarms(p_values, stored.groups, of_groups, stored.smallest_p_value)
            by_part.append(alarms)
        measured["alarms"] = [
            {
                "rate": normal["rate"],
                "false_alarms": normal["observed"],
                "expected": normal["expected"],
                "detected": ood["observed"],
            }
            for normal, ood in zip(*by_part, strict=True)
        ]
    return measured


def _measure_score(
    values: np.ndarray,
    rows: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    level: float | None,
) -> dict[str, Any]:
    """Compute :data:`MEASURES` with intervals by resampling the groups of the rows of each part."""
    ranks, rng = _ranks(values), np.random.default_rng(0)
    parts = [(ranks[rows[part]], groups[part]) for part in (OOD, NORMAL)]

    def measures(draw: Callable[[int], np.ndarray]) -> tuple[float, float, float]:
        # numbers of events by rank, the highest first; draw returns weights of some groups
        ood, normal = (
            np.bincount(of_rows, draw(of_groups.max() + 1)[of_groups], ranks.max() + 1)[::-1]
            for of_rows, of_groups in parts
        )
        true, false = ood.cumsum(), normal.cumsum()
        auroc = (normal * (true - ood / 2)).sum() / (true[-1] * false[-1])
        average = (ood * true / np.maximum(true + false, 1)).sum() / true[-1]
        at_recall = false[np.argmax(true / true[-1] >= 0.95)] / false[-1]
        return float(auroc), float(average), float(at_recall)

    def resample(count: int) -> np.ndarray:
        return np.bincount(rng.integers(count, size=count), minlength=count)

    ends = np.full((2, len(MEASURES)), None)
    if level is not None:
        resampled = [measures(resample) for _ in range(RESAMPLES)]
        ends = np.quantile(resampled, [level, 1 - level], axis=0)
    columns = zip(MEASURES, measures(np.ones), *ends.tolist(), strict=True)
    return {
        name: {"value": value, "low": low, "high": high, "n": len(values)}
        for name, value, low, high in columns
    }


def roc(normal: np.ndarray, ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute false and true positive rates of a score for all thresholds."""
    from sklearn.metrics import roc_curve  # loads slowly

    is_ood = np.repeat([0, 1], [len(normal), len(ood)])
    return roc_curve(is_ood, _ranks(np.concatenate([normal, ood])))[:2]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0, equal for equal values; NaN and infinity have the highest rank."""
    finite = np.nan_to_num(values, nan=np.finfo(np.float64).max)
    return np.unique(finite, return_inverse=True)[1]
