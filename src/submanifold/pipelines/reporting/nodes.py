"""Nodes of the reporting pipeline.

They load what they draw with when they draw: matplotlib would hold up the start of every run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from submanifold.data.settings import SyntheticSettings
from submanifold.evaluation.calibration import Calibration
from submanifold.evaluation.metrics import COMPARED, METRICS, NONE
from submanifold.evaluation.samples import TEMPERATURES
from submanifold.evaluation.truth import manifold_picture
from submanifold.models import Model
from submanifold.plots.pages import render
from submanifold.studies import paper

DRAWN = 4000
PCA = "baselines.pca.mse"  # which has a row
NO_NOISE = {"why": "none without noise"}

Measured = dict[str, Any]


def make_table(
    metrics: Measured,
    hierarchy: Model,
    dataset: str,
    method: str,
    truth: Measured | None = None,
) -> pd.DataFrame:
    """Lay out the metrics as rows of text, beside the truth's, the baselines' and the paper's."""
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
    rows = [{"model": name, **_written(each)} for name, each in measured.items() if each]
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
    metrics: Measured,
    **about: Any,
) -> dict[str, Any]:
    """Draw samples and what the manifold rejects, and write the page around them.

    Returns:
        The ``report``, and the figures: ``curves``, ``samples``, ``samples_cool``, ``rejection``,
        ``dimensions``.
    """
    from submanifold.plots.dimensions import dimension_curves
    from submanifold.plots.images import image_grid
    from submanifold.plots.paper import rejection_blocks

    rejection = rejection_blocks(np.asarray(test[: len(projections)]), projections, per_row=4)
    figures = {"rejection": rejection}
    for name, images in ("samples", samples), ("samples_cool", samples_cool):
        title = f"Samples at temperature {TEMPERATURES[name]:g}"
        figures[name] = image_grid(images[:64], columns=16, title=title)
    rotations = [each["rotation"] for each in about.values()
                 if isinstance(each, dict) and "rotation" in each]  # fmt: skip
    first_order = rotations[-1] if rotations else None
    figures["dimensions"] = dimension_curves(metrics["curve"], metrics["dims"][-1], first_order)
    calibration = _calibration(about["hierarchy"].calibration)
    return _report(figures, metrics=metrics, calibration=calibration, **about)


def _calibration(found: Measured) -> str:
    """What the p-values of ``submanifold score`` are based on, or why there are none."""
    if "why" in found:
        return f"not available. {found['why']}"
    return f"{Calibration.from_dict(found).basis} for validation."


def report_points(
    hierarchy: Model,
    samples: np.ndarray,
    test: np.ndarray,
    data: SyntheticSettings,
    **about: Any,
) -> dict[str, Any]:
    """Draw the learned manifold and density beside the true ones, and the page around them.

    Returns:
        The ``report``, and the figures: ``curves`` and ``manifold``.
    """
    from submanifold.plots.manifolds import manifold_figure

    truth = data.manifold
    points, grid = manifold_picture(hierarchy, truth, test[:DRAWN], samples)
    figure = manifold_figure(**points, grid=grid)
    return _report({"manifold": figure}, hierarchy=hierarchy, **about)


def _report(
    figures: dict[str, Any],
    metrics: Measured,
    table: pd.DataFrame,
    manifest: dict[str, Any],
    hierarchy: Model,
    dataset: str,
    method: str,
    truth: Measured | None = None,
    calibration: str | None = None,
    **histories: dict[str, Any],
) -> dict[str, Any]:
    from submanifold.plots.curves import training_curves
    from submanifold.plots.images import as_png

    phases = list(histories.values())
    trainings = {each["name"]: each for each in phases if each["train"]}
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
        histories=phases,
        pictures={name: as_png(figure) for name, figure in figures.items()},
        value=lambda name, measured: METRICS[name].write(measured).partition(" [")[0],
    )
    return {"report": page, **figures}


def _written(metrics: Measured) -> dict[str, str]:
    """Write every metric that is there, by name."""
    found = {name: metric.read(metrics) for name, metric in METRICS.items()}
    return {name: METRICS[name].write(each) for name, each in found.items() if each is not None}


def _paper_rows(
    dataset: str, method: str, dims: Sequence[int], hierarchy: Model
) -> list[dict[str, str]]:
    """Give the paper's numbers where data, method and dimensions are the paper's."""
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
