"""Sections of the report page: what its template shows, from metrics, scores and images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from submanifold.evaluation.calibration import Calibration, false_alarms
from submanifold.evaluation.events import (
    NLL,
    density_column,
    generalization_gap,
    group_numbers,
    of_split,
    summarize,
)
from submanifold.evaluation.illustrations import pixel_errors
from submanifold.evaluation.metrics import (
    METRICS,
    NONE,
    PROJECTION_ERRORS,
    SUBSET,
    events_of,
    format_interval,
    format_value,
)
from submanifold.evaluation.reconstruction import SHOWN_DIMS
from submanifold.models import Model
from submanifold.plots.ood import density_histogram
from submanifold.plots.sheets import sheet

COLUMNS, EXTREMES = 8, 16
TOO_LARGE = 2.0  # times PCA's error: the report warns of an encoder projection's

Metrics = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


def written(name: str, measured: Any) -> str:
    """Write the value of a metric without its interval."""
    return METRICS[name].write(measured).partition(" [")[0]


def of_model(metrics: Metrics, scored: pd.DataFrame, model: Model) -> dict[str, Any]:
    """Return what the reports of images and of tables have in common."""
    fitted = Calibration.of(model)
    return {
        "quality": quality(metrics),
        "warnings": warnings(metrics),
        "calibration": model.calibration,
        "fitted": fitted,
        "likelihood": likelihood(scored, metrics["baselines"]["gaussian"]),
        "alarms": alarms(scored, fitted),
    }


def warnings(metrics: Metrics) -> list[str]:
    """Warn if the training was too short for projections better than PCA's."""
    pca = metrics["baselines"]["pca_subset"].get("mse")
    if not pca or not pca["value"]:
        return []
    ratios = {
        kind: metrics[name]["value"] / pca["value"]
        for kind, name in PROJECTION_ERRORS.items()
        if name in metrics
    }
    if ratios["encoder"] > TOO_LARGE and min(ratios.values()) > 1:
        return ["The errors are larger than PCA's: train for more steps"]
    return []


def quality(metrics: Metrics, truth: Metrics | None = None) -> list[dict[str, str]]:
    """Return the few metrics that say how good a model is, with references to compare them with.

    A row has the ``name``, its definition as ``help``, the ``value``, and the ``reference``: that
    of a Gaussian with full covariance, of PCA with as many axes, or of training images.
    """
    gaussian = metrics["baselines"]["gaussian"] or {}
    training = metrics.get("training_images") or {}
    rows = []

    def add(name: str, measured: Any, what: str = "", reference: Any = None) -> None:
        metric = METRICS[name]
        text = f"{what}: {written(name, reference)}" if reference is not None else NONE
        rows.append(
            {
                "name": metric.label.replace(SUBSET, ""),
                "help": metric.help,
                "value": metric.write(measured),
                "reference": text,
            }
        )

    for name in ("divergence", "projection_distance", "sample_distance"):
        if truth is not None and name in truth:
            add(name, truth[name])
    density = "nll" if events_of(metrics) == "rows" else "bits_per_dim"
    add(density, metrics[density], "Gaussian", gaussian.get(density))
    rows += _errors_over_pca(metrics)
    if "nearest_psnr" in metrics:
        add("nearest_psnr", metrics["nearest_psnr"])
    for name in ("fid", "frechet_distance", "kid", "precision", "recall"):
        if name in metrics:
            add(name, metrics[name], "training images", training.get(name))
    add(
        "seconds.training",
        metrics["seconds"]["training"],
        "evaluation",
        metrics["seconds"]["evaluation"],
    )
    return rows


def _errors_over_pca(metrics: Metrics) -> list[dict[str, str]]:
    """Return a row with the errors of nearest projections over PCA's at a few dimensions."""
    curve = metrics["curve"]
    pca = dict(zip(curve["dims"], curve["pca_mse"], strict=True))
    errors = zip(curve["nearest_dims"], curve["nearest_mse"], strict=True)
    ratios = {dim: error / pca[dim] for dim, error in errors if error is not None and pca.get(dim)}
    if not ratios:
        return []
    shown = [dim for dim in (*SHOWN_DIMS, metrics["dims"][-1]) if dim in ratios]
    texts = [f"{format_value(ratios[dim], 2)} at d = {dim}" for dim in sorted({*shown})]
    text = (
        "Squared error of nearest projections as a multiple of that of PCA with as many axes, of "
        f"{curve['n']} evenly spaced test events. Below 1 is better than PCA."
    )
    return [
        {"name": "error over PCA's", "help": text, "value": ", ".join(texts), "reference": "PCA: 1"}
    ]


def likelihood(scored: pd.DataFrame, gaussian: Metrics | None = None) -> dict[str, Any]:
    """Return the histogram of densities, their means by split, and the gap between the splits."""
    column = density_column(scored)
    if not scored[column].notna().any():
        return {"histogram": None}
    of_rows = column == NLL
    sign, labels = (-1, ("log-density, nats", "rows")) if of_rows else (1, ())
    by_split = {str(split): rows for split, rows in scored.groupby("split", sort=False)}
    values = {split: sign * rows[column].to_numpy() for split, rows in by_split.items()}
    means = {split: summarize(rows, column) for split, rows in by_split.items()}
    gap = generalization_gap(means)
    return {
        "histogram": density_histogram(values, *labels),
        "of_rows": of_rows,
        "means": {split: written(column, mean) for split, mean in means.items()},
        "gap": gap,
        "difference": format_interval(gap, ".3f", signed=True),
        "gaussian": written(column, gaussian[column]) if gaussian else None,
    }


def extremes(scored: pd.DataFrame, test: np.ndarray) -> list[dict[str, Any]]:
    """Return the most and the least likely test images."""
    of_test = of_split(scored, "test")
    column, names = "bits_per_dim", ("Most likely", "Least likely")
    text = "{:.2f} to {:.2f} bits per dimension"
    if not of_test["bits_per_dim"].notna().any():
        column, names = "encoder_distance", ("Smallest encoder error", "Largest encoder error")
        text = "mean squared error {:.2g} to {:.2g}"
    order = of_test.sort_values(column, kind="stable")
    if not (count := min(EXTREMES, len(order) // 2)):
        return []
    entries = []
    for name, rows in zip(names, (order[:count], order[::-1][:count]), strict=True):
        ends = text.format(rows[column].min(), rows[column].max())
        picture = sheet(test[rows["number"].to_numpy()], COLUMNS)
        entries.append({"name": f"{name} test images", "image": picture, "text": ends})
    return entries


def alarms(scored: pd.DataFrame, fitted: Calibration | None) -> dict[str, Any] | None:
    """Return promised and observed rates of false alarms on test images; None without p-values."""
    if "p_value" not in scored or fitted is None:
        return None
    of_test = of_split(scored, "test")
    p_values, groups = of_test["p_value"].to_numpy(), group_numbers(of_test)
    rows = false_alarms(p_values, fitted.groups, groups, fitted.smallest_p_value)
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
        blocks.append([{"name": k, "image": sheet(v, COLUMNS)} for k, v in named.items()])
    errors = {
        "samples": pixel_errors(nearest, np.asarray(samples[:count])),
        "test images": pixel_errors(of_test, np.asarray(test[: len(of_test)])),
    }
    means = {name: math.sqrt(squares.mean()) for name, squares in errors.items()}
    return {"blocks": blocks, "errors": means}
