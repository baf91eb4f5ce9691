"""Sections of the report page: what its template shows, from metrics, scores and images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from submanifold.evaluation.calibration import Calibration, false_alarms
from submanifold.evaluation.illustrations import pixel_errors
from submanifold.evaluation.metrics import METRICS, PROJECTION_ERRORS, format_interval, format_value
from submanifold.evaluation.split_scores import (
    NLL,
    density_column,
    generalization_gap,
    group_numbers,
    split_means,
)
from submanifold.models import Model
from submanifold.plots.ood import density_histogram
from submanifold.plots.strips import strips

COLUMNS, EXTREMES = 8, 16
TOO_LARGE = 2.0  # times PCA's error: the report warns of an encoder projection's

Metrics = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


def written(name: str, measured: Any) -> str:
    """Write the value of a metric without its interval."""
    return METRICS[name].write(measured).partition(" [")[0]


def of_model(metrics: Metrics, scored: pd.DataFrame, model: Model) -> dict[str, Any]:
    """Return what the reports of images and of tables have in common."""
    comparison, warning = against_pca(metrics)
    has_p_values = "groups" in model.calibration
    fitted = Calibration.from_dict(model.calibration) if has_p_values else None
    return {
        "comparison": comparison,
        "warnings": [warning] if warning else [],
        "calibration": model.calibration,
        "fitted": fitted,
        "likelihood": likelihood(scored),
        "alarms": alarms(scored, fitted),
    }


def against_pca(metrics: Metrics) -> tuple[dict[str, str] | None, str | None]:
    """Write errors of projections as multiples of PCA's; warn if the training was too short."""
    pca = metrics["baselines"]["pca_subset"].get("mse")
    if not pca or not pca["value"]:
        return None, None
    ratios = {kind: metrics[name]["value"] / pca["value"]
              for kind, name in PROJECTION_ERRORS.items() if name in metrics}  # fmt: skip
    sizes = {kind: f"{format_value(ratio, 2)} times" for kind, ratio in ratios.items()}
    if ratios["encoder"] > TOO_LARGE and min(ratios.values()) > 1:
        return sizes, "The errors are larger than PCA's: train for more steps"
    return sizes, None


def likelihood(scored: pd.DataFrame) -> dict[str, Any]:
    """Return the histogram of densities, their means by split, and the gap between the splits."""
    column = density_column(scored)
    if not scored[column].notna().any():
        return {"histogram": None}
    of_rows = column == NLL
    sign, labels = (-1, ("log-density, nats", "rows")) if of_rows else (1, ())
    by_split = scored.groupby("split", sort=False)[column]
    values = {str(split): sign * values.to_numpy() for split, values in by_split}
    means = split_means(scored)
    gap = generalization_gap(means)
    return {
        "histogram": density_histogram(values, *labels),
        "of_rows": of_rows,
        "means": {split: written(column, mean) for split, mean in means.items()},
        "gap": gap,
        "difference": format_interval(gap, ".3f", signed=True),
    }


def extremes(scored: pd.DataFrame, test: np.ndarray) -> list[dict[str, Any]]:
    """Return the most and the least likely test images."""
    of_test = scored[scored["split"] == "test"]
    column, names = "bits_per_dim", ("Most likely", "Least likely")
    text = "{:.2f} to {:.2f} bits per dimension"
    if not of_test["bits_per_dim"].notna().any():
        column, names = "encoder_mse", ("Smallest encoder error", "Largest encoder error")
        text = "mean squared error {:.2g} to {:.2g}"
    order = of_test.sort_values(column, kind="stable")
    if not (count := min(EXTREMES, len(order) // 2)):
        return []
    entries = []
    for name, rows in zip(names, (order[:count], order[::-1][:count]), strict=True):
        ends = text.format(rows[column].min(), rows[column].max())
        pictures = strips(test[rows["number"].to_numpy()], COLUMNS)
        entries.append({"name": f"{name} test images", "strips": pictures, "text": ends})
    return entries


def alarms(scored: pd.DataFrame, fitted: Calibration | None) -> dict[str, Any] | None:
    """Return promised and observed rates of false alarms on test images; None without p-values."""
    if "p_value" not in scored or fitted is None:
        return None
    of_test = scored[scored["split"] == "test"]
    rows = false_alarms(of_test["p_value"].to_numpy(), fitted.groups, group_numbers(of_test))
    if not rows:
        return None
    fewer = [row["rate"] for row in rows if row["observed"]["value"] < row["expected"]["low"]]
    more = [row["rate"] for row in rows if row["observed"]["value"] > row["expected"]["high"]]
    rates = {"fewer": _percents(fewer), "more": _percents(more)}
    return {"rows": rows, "count": len(of_test), **rates}


def _percents(rates: Sequence[float]) -> str:
    return ", ".join(f"{100 * rate:g}%" for rate in rates)


def neighbors(samples: np.ndarray, test: np.ndarray, found: Arrays) -> dict[str, Any]:
    """Return samples next to the training images with the smallest pixel distance."""
    nearest, of_test = found["sample_neighbors"], found["test_neighbors"]
    count = len(nearest)
    blocks = []
    for start in range(0, count, COLUMNS):
        part = slice(start, start + COLUMNS)
        named = {"samples": samples[part], "nearest training images": nearest[part]}
        blocks.append([{"name": k, "strips": strips(v, COLUMNS)} for k, v in named.items()])
    errors = {
        "samples": pixel_errors(nearest, np.asarray(samples[:count])),
        "test images": pixel_errors(of_test, np.asarray(test[: len(of_test)])),
    }
    means = {name: math.sqrt(squares.mean()) for name, squares in errors.items()}
    return {"blocks": blocks, "errors": means}
