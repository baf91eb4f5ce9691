"""Nodes of the reporting pipeline. They import plots lazily, because matplotlib loads slowly."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.config.schema import Kind
from submanifold.data.settings import SyntheticSettings
from submanifold.data.tables import Preprocessor
from submanifold.evaluation import paper
from submanifold.evaluation.metrics import (
    COMPARED,
    COMPARED_WITH_TEST,
    METRICS,
    NONE,
    PROJECTION_ERRORS,
    SUBSET,
    events_of,
    training_images_reach,
)
from submanifold.evaluation.samples import TEMPERATURES
from submanifold.evaluation.truth import manifold_picture
from submanifold.models import Model
from submanifold.pipelines.usage import of_rows
from submanifold.plots.pages import render
from submanifold.runs.information import usage_commands

MAX_POINTS = 4000
PCA = {"baselines.pca.mse", "baselines.pca_subset.mse"}
STAGE_1 = "stage_1_mse"
NO_NOISE = {"why": "none without noise"}

Metrics = dict[str, Any]


def make_table(
    metrics: Metrics, hierarchy: Model, dataset: str, method: str, truth: Metrics | None = None
) -> pd.DataFrame:
    """Format the metrics of the model, the truth, the baselines and the paper as a table."""
    dims, baselines = metrics["dims"], metrics["baselines"]
    pca, of_subset = (
        errors.get("mse", errors) for errors in (baselines["pca"], baselines["pca_subset"])
    )
    model = f"{method}, {' → '.join(map(str, dims))}"
    measured: dict[str, Any] = {model: metrics}
    if truth is not None:
        none = NO_NOISE if hierarchy.has_density else metrics["bits_per_dim"]
        measured[model] = {**metrics, "nll": none, "divergence": none, **truth}
        true = {"nll": truth.get("true_nll", NO_NOISE), "manifold_nll": truth["manifold_entropy"]}
        measured[f"truth, noise {truth['noise']:g}"] = true
    compared = {*PROJECTION_ERRORS.values()} & metrics.keys()
    measured[f"PCA, d = {dims[-1]}"] = {"mse": pca, **dict.fromkeys(compared, of_subset)}
    measured["Gaussian, full covariance"] = baselines["gaussian"]
    measured["training images"] = metrics.get("training_images")
    rows = []
    for label, values in measured.items():
        if values:
            figures = {name: metric.read(values) for name, metric in METRICS.items()}
            written = {
                name: METRICS[name].write(value)
                for name, value in figures.items() if value is not None
            }  # fmt: skip
            rows.append({"model": label, **written})
    rows += _paper_rows(dataset, method, dims, hierarchy)
    alone, mse = (METRICS[name].write(metrics.get(name)) for name in (STAGE_1, "mse"))
    hidden = {*PCA, STAGE_1} if alone == mse else PCA  # later stages keep the manifold
    if not _has_subset(metrics):
        hidden = {*hidden, "encoder_mse", "encoder_psnr"}  # those of all test data
    shown = [name for name in METRICS if name not in hidden and any(name in row for row in rows)]
    table = pd.DataFrame(rows, columns=["model", *shown]).fillna(NONE)
    return table.rename(columns=_labels(metrics))


def report_images(
    samples: np.ndarray, samples_t07: np.ndarray, test: np.ndarray, projections: np.ndarray,
    illustrations: dict[str, np.ndarray], split_scores: pd.DataFrame, metrics: Metrics,
    hierarchy: Model, **about: Any,
) -> dict[str, Any]:  # fmt: skip
    """Draw the figures of a model of images, and render the ``report`` (HTML)."""
    from submanifold.pipelines.reporting import sections
    from submanifold.plots.dimensions import dimension_curves
    from submanifold.plots.images import image_grid
    from submanifold.plots.paper import rejection_blocks
    from submanifold.plots.strips import dimension_slider, side_by_side, strip

    first_order, dim = _first_order(about), metrics["dims"][-1]
    figures = {
        "rejection": rejection_blocks(np.asarray(test[: len(projections)]), projections, 4),
        "dimensions": dimension_curves(metrics["curve"], dim, first_order),
    }
    drawn = {"samples_t07": samples_t07, "samples": samples}
    for name, images in drawn.items():
        title = f"Samples at temperature {TEMPERATURES[name]:g}"
        figures[name] = image_grid(images[:64], columns=16, title=title)
    by_dim = {name.removeprefix("by_dim_"): images for name, images in illustrations.items()
              if name.startswith("by_dim_")}  # fmt: skip
    slider, path = None, illustrations["interpolation"]
    if by_dim:
        slider = dimension_slider(test[: by_dim["encoder"].shape[1]], by_dim, dim)
    content = {
        "projections": side_by_side(illustrations["originals"], illustrations),
        "dimension_slider": slider,
        "nearest_dims": by_dim["nearest_dims"].tolist() if by_dim else [],
        "extremes": sections.extremes(split_scores, test),
        "samples": [
            {"name": f"Temperature {TEMPERATURES[name]:g}", "strip": strip(images[:64], 16)}
            for name, images in drawn.items()
        ],
        "neighbors": sections.neighbors(samples, test, illustrations),
        "by_class": [
            {"name": f"Label {label}", "strip": strip(row, len(row))}
            for label, row in enumerate(illustrations.get("by_class", ()))
        ],
        "interpolation": strip(path, len(path)),
        "traversal": sections.traversal(illustrations, first_order is not None),
    }
    content |= sections.of_model(metrics, split_scores, hierarchy)
    return _report("images", figures, content, metrics=metrics, hierarchy=hierarchy, **about)


def report_table(
    samples: np.ndarray, test: np.ndarray, split_scores: pd.DataFrame, anomalies: pd.DataFrame,
    metrics: Metrics, hierarchy: Model, **about: Any,
) -> dict[str, Any]:  # fmt: skip
    """Draw the figures of a model of a table, and render the ``report`` (HTML)."""
    from submanifold.pipelines.reporting import sections
    from submanifold.plots.dimensions import dimension_curves
    from submanifold.plots.tables import marginals, pairs

    preprocessor = Preprocessor.from_dict(hierarchy.data["table"])
    names = list(dict.fromkeys(column.name for column in preprocessor.varying))
    data, drawn = (preprocessor.inverse_transform(x[:MAX_POINTS])[names] for x in (test, samples))
    figures = {
        "marginals": marginals({"test rows": data, "samples": drawn}),
        "pairs": pairs(data, drawn),
        "dimensions": dimension_curves(
            metrics["curve"], metrics["dims"][-1], _first_order(about), unit="standardized columns"
        ),
    }
    content = {
        "columns": sections.column_table(preprocessor),
        "anomalies": sections.anomalies(anomalies),
    }
    content |= sections.of_model(metrics, split_scores, hierarchy)
    return _report("table", figures, content, metrics=metrics, hierarchy=hierarchy, **about)


def report_synthetic(
    hierarchy: Model, samples: np.ndarray, test: np.ndarray, data: SyntheticSettings,
    metrics: Metrics, truth: Metrics, **about: Any,
) -> dict[str, Any]:  # fmt: skip
    """Draw the learned and the true manifold, and render the ``report`` (HTML)."""
    from submanifold.pipelines.reporting import sections
    from submanifold.plots.manifolds import manifold_figure

    points, grid = manifold_picture(hierarchy, data.manifold, test[:MAX_POINTS], samples)
    figures = {"manifold": manifold_figure(**points, grid=grid)}
    content = {"tiles": sections.point_tiles(metrics, truth), "warnings": [], "comparison": None}
    return _report("synthetic", figures, content, metrics=metrics, hierarchy=hierarchy, **about)


def _first_order(about: Mapping[str, Any]) -> Metrics | None:
    """Return the errors by dimension that the last rotation predicts, if there is one."""
    rotations = [history["rotation"] for history in about.values()
             if isinstance(history, dict) and "rotation" in history]  # fmt: skip
    return rotations[-1] if rotations else None


def _report(
    kind: Kind, figures: dict[str, Any], content: dict[str, Any], metrics: Metrics,
    table: pd.DataFrame, manifest: dict[str, Any], hierarchy: Model, dataset: str, method: str,
    seed: int, device: str, run: dict[str, Any], **histories: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    from submanifold.pipelines.reporting import sections
    from submanifold.plots.curves import training_curves

    trainings = {name: history for name, history in histories.items() if history["train"]}
    figures = {"curves": training_curves(trainings), **figures}
    labels = _labels(metrics)
    notes = {name: training_images_reach(metrics, name) for name in COMPARED_WITH_TEST}
    word = of_rows if kind == "table" else str
    page = render(
        f"report_{kind}.html",
        events="rows" if kind == "table" else kind,
        name=run["name"] or f"{method} on {dataset}",
        dataset=dataset,
        method=method,
        metrics=metrics,
        table=table,
        help={labels[n]: word(METRICS[n].help) for n in labels if labels[n] in table},
        notes={labels[name]: note for name, note in notes.items() if note and name in labels},
        remarks=[(label, word(text)) for label, text in sections.remarks(metrics)],
        manifest=manifest,
        stages=getattr(hierarchy, "charts", [hierarchy])[0].describe()["stages"],
        has_density=hierarchy.has_density,
        about=sections.facts(run, metrics, histories, seed, str(choose_device(device))),
        usage=usage_commands(hierarchy, run["name"] or str(Path(run["model"]).parent)),
        python=sections.python_code(run["model"], hierarchy, kind),
        minutes=next(
            (history["minutes"] for history in histories.values() if "minutes" in history), None
        ),
        phases=[*histories.values()],
        pictures=figures,
        **content,
    )
    return {"report": page, **figures}


def _has_subset(metrics: Metrics) -> bool:
    return bool(metrics["encoder_mse"]["n"] < metrics["counts"]["test"])


def _labels(metrics: Metrics) -> dict[str, str]:
    """Return the column headings of metrics by name; those of a subset have its size."""
    size = (
        f" ({metrics['encoder_mse']['n']:,} {events_of(metrics)})" if _has_subset(metrics) else ""
    )
    labels = {name: metric.label.replace(SUBSET, size) for name, metric in METRICS.items()}
    if "features" in metrics:
        on = "Inception" if metrics["features"] == "inception" else "pixels"
        labels |= {name: f"{labels[name]} ({on})" for name in ("precision", "recall", "kid")}
    return labels


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
    flow = hierarchy.describe()["stages"][0]["flows"]
    note = "" if flow == [paper.PAPER_FLOW] else ", 3 x 32 steps of width 512"
    row = {metric.name: printed[name] for name, metric in COMPARED.items() if name in printed}
    return [{"model": f"paper, table {same['table'].iloc[0]}{note}", **row}]
