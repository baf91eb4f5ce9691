"""Which images are none of the training data's kind: a model's scores, linear ones, how good."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import auc, average_precision_score, roc_curve

from submanifold.evaluation.baselines import fit_gaussian, rows_of
from submanifold.evaluation.intervals import interval_level
from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.scores import COMBINATION, SCORES, Calibration, score
from submanifold.models import Model

LINEAR = {
    "pca_distance": "mean squared error of PCA's projection, as many axes, pixels from 0 to 1",
    "pca_residual": "the same with the axes of 90% of the variance",
    "hotelling": "Hotelling's T^2 within these axes",
    "mahalanobis": "-log density of a Gaussian, nats",
}
EXPLAINED = 0.9
LINEAR_COMBINATION = "linear_combination"
COMBINED = tuple(name for name in SCORES if name != "typicality")
MEASURES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "false_positives": "false positives at 95% recall",
}
PARTS = ("normal", "ood")
RESAMPLES = 200
MOST = 500
"""Images of a kind: a nearest point costs a hundred encodings."""


def score_kinds(
    model: Model,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    ood: np.ndarray,
    names: Sequence[str] = COMBINED,
    groups: np.ndarray | None = None,
) -> pd.DataFrame:
    """Score normal images and ood, and calibrate on normal validation images alone.

    Args:
        model: The model, on its device.
        train: uint8 images (N, ...) that the linear scores are fitted to; those of the model.
        valid: For the calibration; of each kind the first 500 are scored.
        test: Normal images.
        ood: Others.
        names: Of the model's scores.
        groups: The group of each validation image, as of :meth:`Calibration.fit`.

    Returns:
        A row for each image: ``part`` (normal, ood), ``number`` in its array, its scores, and
        the p-value of each as ``p_<score>``.

    Raises:
        UserError: The validation images do not suffice for a calibration.
    """
    linear = _linear(model.dim, train, valid)

    def flat(images: np.ndarray) -> dict[str, np.ndarray]:
        plain = linear(images)
        return {"density": plain["mahalanobis"], **plain}

    normal, some = valid[:MOST], None if groups is None else groups[:MOST]
    known = Calibration.fit(score(model, normal, names), names, some)
    known_linear = Calibration.fit(flat(normal), tuple(LINEAR), some)
    tables = []
    for part, images in zip(PARTS, (test[:MOST], ood[:MOST]), strict=True):
        found = known.complete(score(model, images, names))
        tails = {f"p_{name}": known.tail(name, values) for name, values in found.items()}
        both = known_linear.complete(flat(images))
        for name in (*LINEAR, COMBINATION):
            shown = LINEAR_COMBINATION if name == COMBINATION else name
            found[shown] = both[name]
            tails[f"p_{shown}"] = known_linear.tail(name, both[name])
        table = pd.DataFrame({**found, **tails})
        table.insert(0, "number", np.arange(len(table)))
        table.insert(0, "part", part)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def with_groups(
    scored: pd.DataFrame, normal: np.ndarray | None, ood: np.ndarray | None
) -> pd.DataFrame:
    """Add the column ``group`` to scores of images, the first of which have these groups.

    It is left out where neither kind has groups; images of a kind without groups have their own.
    """
    if normal is None and ood is None:
        return scored
    given = zip(PARTS, (normal, ood), strict=True)
    counts = scored["part"].value_counts()
    columns = [
        np.arange(counts[part]) if groups is None else groups[: counts[part]]
        for part, groups in given
    ]
    return scored.assign(group=np.concatenate(columns))


def _linear(dim: int, train: np.ndarray, valid: np.ndarray) -> Any:
    """The scores of a linear model, as a function of images."""
    pca, _ = fit_gaussian(train, valid)
    few = pca.explaining(EXPLAINED)
    dim = min(dim, pca.axes.shape[1])

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        batches = rows_of(images)
        return {
            "pca_distance": per_event(lambda x: pca.squared_errors(x)[:, dim], batches),
            "pca_residual": per_event(lambda x: pca.squared_errors(x)[:, few], batches),
            "hotelling": per_event(lambda x: pca.hotelling(x, few), batches),
            "mahalanobis": -per_event(pca.log_prob, batches),
        }

    return scores


def measure_ood(scored: pd.DataFrame) -> dict[str, Any]:
    """How well each score tells ood from normal images.

    Returns:
        ``counts`` by part, ``scores`` by name: ``auroc``, ``average_precision`` (of ood) and
        ``false_positives`` (the share of normal images that score at least as high as 95% of
        the ood), each with its 95% interval by the bootstrap over images of both kinds. Where
        there is a column ``group``, it is the bootstrap over groups, and ``groups`` are their
        counts by part.
    """
    names = [column for column in scored if f"p_{column}" in scored]
    is_ood = (scored["part"] == "ood").to_numpy()
    counts = {part: int((scored["part"] == part).sum()) for part in PARTS}
    groups = scored["group"].to_numpy() if "group" in scored else None
    measured = {str(name): _measured(is_ood, scored[name].to_numpy(), groups) for name in names}
    found = {"counts": counts, "scores": measured}
    if groups is not None:
        of_parts = {part: groups[scored["part"] == part] for part in PARTS}
        found["groups"] = {part: len(np.unique(each)) for part, each in of_parts.items()}
    return found


def _measured(is_ood: np.ndarray, values: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    ranks = _ranks(values)
    level: float | None = 0.025
    kinds: list[Any] = [np.flatnonzero(is_ood), np.flatnonzero(~is_ood)]
    if groups is not None:
        kinds = [_by_group(rows, groups) for rows in kinds]
        level = interval_level(min(map(len, kinds)))
    ends = np.full((2, len(MEASURES)), None)
    if level is not None:
        rng, resampled = np.random.default_rng(0), []
        for _ in range(RESAMPLES):
            chosen = np.concatenate([_redrawn(kind, rng) for kind in kinds])
            resampled.append(_one(is_ood[chosen], ranks[chosen]))
        ends = np.quantile(resampled, [level, 1 - level], axis=0)
    return {
        name: {"value": value, "low": low, "high": high, "n": len(values)}
        for name, value, low, high in zip(
            MEASURES, _one(is_ood, ranks), *ends.tolist(), strict=True
        )
    }


def _by_group(rows: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """An array of rows for each group."""
    ordered = rows[np.argsort(groups[rows], kind="stable")]
    return np.split(ordered, np.flatnonzero(np.diff(groups[ordered])) + 1)


def _redrawn(kind: np.ndarray | list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """As many rows, or groups of rows, drawn with replacement."""
    drawn = rng.integers(len(kind), size=len(kind))
    return kind[drawn] if isinstance(kind, np.ndarray) else np.concatenate([kind[i] for i in drawn])


def roc(normal: np.ndarray, ood: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of normal images and of ood that score at least as high, by every threshold."""
    is_ood = np.repeat([0, 1], [len(normal), len(ood)])
    false, true, _ = roc_curve(is_ood, _ranks(np.concatenate([normal, ood])))
    return false, true


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal ones for equal values; values that overflow have the highest rank."""
    known = np.nan_to_num(values, nan=np.finfo(np.float64).max)
    return np.unique(known, return_inverse=True)[1].astype(np.float64)


def _one(is_ood: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    false, true, _ = roc_curve(is_ood, values, drop_intermediate=False)
    return (
        float(auc(false, true)),
        float(average_precision_score(is_ood, values)),
        float(false[np.argmax(true >= 0.95)]),
    )


def titles(scored: Mapping[str, Any]) -> dict[str, str]:
    """Say what each score of a table is, in their order."""
    known = {
        **SCORES,
        COMBINATION: "all of the above by their joint distribution on validation images",
        **LINEAR,
        LINEAR_COMBINATION: "all linear scores likewise",
    }
    return {name: text for name, text in known.items() if name in scored}
