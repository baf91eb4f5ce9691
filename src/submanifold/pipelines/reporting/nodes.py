"""Nodes of the reporting pipeline. They import plots lazily, because matplotlib loads slowly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from submanifold.data.settings import SyntheticSettings
from submanifold.evaluation import paper
from submanifold.evaluation.calibration import Calibration
from submanifold.evaluation.metrics import COMPARED, METRICS, NONE
from submanifold.evaluation.samples import TEMPERATURES
from submanifold.evaluation.truth import manifold_picture
from submanifold.models import Model
from submanifold.plots.pages import render

MAX_POINTS = 4000
PCA = "baselines.pca.mse"
NO_NOISE = {"why": "none without noise"}

Metrics = dict[str, Any]


def make_table(
    metrics: Metrics,
    hierarchy: Model,
    dataset: str,
    method: str,
    truth: Metrics | None = None,
) -> pd.DataFrame:
    """Format the metrics of the model, the truth, the baselines and the paper as a table."""
    dims, pca = metrics["dims"], metrics["baselines"]["pca"]
    model = f"{method}, {' → '.join(map(str, dims))}"
    measured: dict[str, Any] = {model: metrics}
    if truth is not None:
        none = NO_NOISE if hierarchy.has_density else metrics["bits_per_dim"]
        measured[model] = {**metrics, "nll": none, "divergence": none, **truth}
        true = {"nll": truth.get("true_nll", NO_NOISE), "manifold_nll": truth["manifold_entropy"]}
        measured[f"truth, noise {truth['noise']:g}"] = true
    measured[f"PCA, d = {dims[-1]}"] = {"mse": pca.get("mse", pca)}
    measured["Gaussian, full covariance"] = metrics["baselines"]["gaussian"]
    measured["training images"] = metrics.get("training_images")
    rows = []
    for label, values in measured.items():
        if values:
            found = {name: metric.read(values) for name, metric in METRICS.items()}
            written = {n: METRICS[n].write(each) for n, each in found.items() if each is not None}
            rows.append({"model": label, **written})
    rows += _paper_rows(dataset, method, dims, hierarchy)
    shown = [name for name in METRICS if any(name in row for row in rows) and name != PCA]
    table = pd.DataFrame(rows, columns=["model", *shown]).fillna(NONE)
    labels = {name: METRICS[name].label for name in shown}
    for name in {"precision", "recall", "kid"} & labels.keys():
        on = "Inception" if metrics["features"] == "inception" else "pixels"
        labels[name] = f"{labels[name]} ({on})"
    return table.rename(columns=labels)


def report_images(
    samples: np.ndarray,
    samples_cool: np.ndarray,
    test: np.ndarray,
    projections: np.ndarray,
    metrics: Metrics,
    **about: Any,
) -> dict[str, Any]:
    """Draw the figures of a model of images, and render the report.

    Returns:
        ``report`` (HTML), and the figures ``curves``, ``samples``, ``samples_cool``,
        ``rejection`` and ``dimensions``.
    """
    from submanifold.plots.dimensions import dimension_curves
    from submanifold.plots.images import image_grid
    from submanifold.plots.paper import rejection_blocks

    rotations = [each["rotation"] for each in about.values()
                 if isinstance(each, dict) and "rotation" in each]  # fmt: skip
    first_order = rotations[-1] if rotations else None
    figures = {
        "rejection": rejection_blocks(np.asarray(test[: len(projections)]), projections, 4),
        "dimensions": dimension_curves(metrics["curve"], metrics["dims"][-1], first_order),
    }
    for name, images in {"samples": samples, "samples_cool": samples_cool}.items():
        title = f"Samples at temperature {TEMPERATURES[name]:g}"
        figures[name] = image_grid(images[:64], columns=16, title=title)
    calibration = about["hierarchy"].calibration
    if "why" in calibration:
        text = f"not available. {calibration['why']}"
    else:
        text = f"{Calibration.from_dict(calibration).basis} for validation."
    return _report(figures, metrics=metrics, calibration=text, **about)


def report_points(
    hierarchy: Model,
    samples: np.ndarray,
    test: np.ndarray,
    data: SyntheticSettings,
    **about: Any,
) -> dict[str, Any]:
    """Draw the learned and the true manifold, and render the report.

    Returns:
        ``report`` (HTML), and the figures ``curves`` and ``manifold``.
    """
    from submanifold.plots.manifolds import manifold_figure

    points, grid = manifold_picture(hierarchy, data.manifold, test[:MAX_POINTS], samples)
    figure = manifold_figure(**points, grid=grid)
    return _report({"manifold": figure}, hierarchy=hierarchy, **about)


def _report(
    figures: dict[str, Any],
    metrics: Metrics,
    table: pd.DataFrame,
    manifest: dict[str, Any],
    hierarchy: Model,
    dataset: str,
    method: str,
    truth: Metrics | None = None,
    calibration: str | None = None,
    **histories: dict[str, Any],
) -> dict[str, Any]:
    from submanifold.plots.curves import training_curves

    trainings = {name: each for name, each in histories.items() if each["train"]}
    figures = {"curves": training_curves(trainings), **figures}
    page = render(
        "report.html",
        dataset=dataset,
        method=method,
        metrics=metrics,
        truth=truth,
        calibration=calibration,
        table=table,
        manifest=manifest,
        stages=hierarchy.describe()["stages"],
        has_density=hierarchy.has_density,
        histories=histories.values(),
        pictures=figures,
        value=lambda name, measured: METRICS[name].write(measured).partition(" [")[0],
    )
    return {"report": page, **figures}


def _paper_rows(
    dataset: str, method: str, dims: Sequence[int], hierarchy: Model
) -> list[dict[str, str]]:
    """Return the paper's results for the same data, method and dimensions, if it has any."""
    results = paper.results()
    same = results[
        (results["dataset"] == dataset)
        & (results["method"] == method.replace("-star", "*"))
        & (results["stage_dims"] == "-".join(map(str, dims)))
    ]
    if same.empty:
        return []
    columns = same["metric"], same["value"], same["spread"]
    printed = {name: paper.write(*number) for name, *number in zip(*columns, strict=True)}
    flow = hierarchy.describe()["stages"][0]["bijections"]
    note = "" if flow == [paper.PAPER_FLOW] else ", 3 x 32 steps of width 512"
    row = {metric.name: printed[name] for name, metric in COMPARED.items() if name in printed}
    return [{"model": f"paper, table {same['table'].iloc[0]}{note}", **row}]
