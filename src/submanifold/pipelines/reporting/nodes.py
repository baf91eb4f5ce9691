"""Nodes of the reporting pipeline. They import plots lazily, because matplotlib loads slowly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.data.events import Events
from submanifold.data.settings import Kind, SyntheticSettings
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.calibration import Calibration
from submanifold.evaluation.metrics import (
    COMPARED_WITH_TEST,
    METRICS,
    NONE,
    PROJECTION_ERRORS,
    SUBSET,
    events_of,
    format_value,
    training_images_reach,
)
from submanifold.evaluation.samples import TEMPERATURES
from submanifold.evaluation.truth import manifold_picture
from submanifold.flows import context_of
from submanifold.models import Model
from submanifold.plots.pages import render
from submanifold.runs.information import information, usage_commands

MAX_POINTS = 4000
PCA = {"baselines.pca.mse", "baselines.pca_subset.mse"}
STAGE_1 = "stage_1_mse"
NO_NOISE = {"why": "none without noise"}

Metrics = dict[str, Any]


def make_table(
    metrics: Metrics, hierarchy: Model, method: str, truth: Metrics | None = None
) -> pd.DataFrame:
    """Format the metrics of the model, the truth and the baselines as a table."""
    dims, baselines = metrics["dims"], metrics["baselines"]
    of_pca = baselines["pca"], baselines["pca_subset"]
    pca, of_subset = (errors.get("mse", errors) for errors in of_pca)
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
            rows.append({"model": label})
            for name, metric in METRICS.items():
                if (value := metric.read(values)) is not None:
                    rows[-1][name] = metric.write(value)
    alone, mse = (METRICS[name].write(metrics.get(name)) for name in (STAGE_1, "mse"))
    hidden = {*PCA, STAGE_1} if alone == mse else PCA  # later stages keep the manifold
    if not _has_subset(metrics):
        hidden = {*hidden, "encoder_mse", "encoder_psnr"}  # those of all test data
    shown = [name for name in METRICS if name not in hidden and any(name in row for row in rows)]
    table = pd.DataFrame(rows, columns=["model", *shown]).fillna(NONE)
    return table.rename(columns=_labels(metrics))


def report_images(
    metrics: Metrics,
    hierarchy: Model,
    histories: dict[str, Any],
    test: Events,
    samples: Events,
    samples_t07: Events,
    projections: np.ndarray,
    illustrations: dict[str, np.ndarray],
    scored_events: pd.DataFrame,
    **shared: Any,
) -> dict[str, Any]:
    """Draw the figures of a model of images, and render the ``report`` (HTML)."""
    from submanifold.pipelines.reporting import sections
    from submanifold.plots.curves import dimension_curves
    from submanifold.plots.images import image_grid
    from submanifold.plots.paper import interleave, rejection_blocks, rejections
    from submanifold.plots.sheets import by_dim, sheet, side_by_side

    first_order, dim = _first_order(histories), metrics["dims"][-1]
    projected = test.x[: len(projections)]
    figures = {"rejection": rejection_blocks(projected, projections, 4)}
    figures["dimensions"] = dimension_curves(metrics["curve"], dim, first_order)
    drawn = {"samples_t07": samples_t07.x, "samples": samples.x}
    for name, images in drawn.items():
        title = f"Samples at temperature {TEMPERATURES[name]:g}"
        figures[name] = image_grid(images[:64], columns=16, title=title)
    # at -3, -1, 1 and 3 standard deviations
    path, changed = illustrations["interpolation"], illustrations["traversal"][:, ::2]
    nested = {
        name.removeprefix("by_dim_"): images
        for name, images in illustrations.items()
        if name.startswith("by_dim_")
    }
    content = {
        "projections": side_by_side(illustrations["originals"], illustrations),
        "by_dim": by_dim(illustrations["originals"], nested) if nested else None,
        "extremes": sections.extremes(scored_events, test.x),
        "samples": [
            {"name": f"Temperature {TEMPERATURES[name]:g}", "image": sheet(images[:64], 16)}
            for name, images in drawn.items()
        ],
        "neighbors": sections.neighbors(samples.x, test.x, illustrations),
        "by_class": [
            {"name": f"Label {label}", "image": sheet(row, len(row))}
            for label, row in enumerate(illustrations.get("by_class", ()))
        ],
        "interpolation": sheet(path, len(path)),
        "traversal": sheet(changed.reshape(-1, *changed.shape[2:]), changed.shape[1]),
        "residuals": sheet(interleave(rejections(projected, projections)), 16),
        "traversed": len(changed),
        "is_rotated": first_order is not None,
    }
    content |= sections.of_model(metrics, scored_events, hierarchy)
    run = _Run(metrics, hierarchy, histories, **shared)
    return _report("images", figures, content, run)


def report_table(
    metrics: Metrics,
    hierarchy: Model,
    histories: dict[str, Any],
    test: Events,
    samples: Events,
    scored_events: pd.DataFrame,
    anomalies: pd.DataFrame,
    **shared: Any,
) -> dict[str, Any]:
    """Draw the figures of a model of a table, and render the ``report`` (HTML)."""
    from submanifold.pipelines.reporting import sections
    from submanifold.plots.curves import dimension_curves
    from submanifold.plots.tables import marginals, pairs

    preprocessor = Preprocessor.from_dict(hierarchy.data["table"])
    names = [*preprocessor.features]
    first_order, dim, unit = _first_order(histories), metrics["dims"][-1], "standardized columns"
    data = preprocessor.inverse_transform(test[:MAX_POINTS])[names]
    drawn = preprocessor.inverse_transform(samples[:MAX_POINTS], clip=True)[names]
    figures = {
        "marginals": marginals({"test rows": data, "samples": drawn}),
        "pairs": pairs(data, drawn),
        "dimensions": dimension_curves(metrics["curve"], dim, first_order, unit=unit),
    }
    content = sections.of_model(metrics, scored_events, hierarchy)
    content |= {
        "columns": preprocessor.description,
        "number": format_value,
        "anomalies": anomalies,
        "is_rotated": first_order is not None,
    }
    run = _Run(metrics, hierarchy, histories, **shared)
    return _report("table", figures, content, run)


def report_synthetic(
    metrics: Metrics,
    hierarchy: Model,
    histories: dict[str, Any],
    test: Events,
    samples: Events,
    truth: Metrics,
    data: SyntheticSettings,
    **shared: Any,
) -> dict[str, Any]:
    """Draw the learned and the true manifold, and render the ``report`` (HTML)."""
    from submanifold.pipelines.reporting.sections import quality
    from submanifold.plots.manifolds import manifold_figure

    points, grid = manifold_picture(hierarchy, data.manifold, test.x[:MAX_POINTS], samples.x)
    figures = {"manifold": manifold_figure(**points, grid=grid)}
    content: Metrics = {"truth": truth, "warnings": [], "quality": quality(metrics, truth)}
    run = _Run(metrics, hierarchy, histories, **shared)
    return _report("synthetic", figures, content, run)


def _first_order(histories: dict[str, Any]) -> Metrics | None:
    """Return the errors by dimension that the last rotation predicts, if there is one."""
    rotations = [history["rotation"] for history in histories.values() if "rotation" in history]
    return rotations[-1] if rotations else None


@dataclass(frozen=True)
class _Run:
    """What the reports of all kinds of data show of a run.

    Attributes:
        metrics: Metrics of the model.
        model: The model.
        histories: Histories of the phases by name.
        table: The metrics as a table, of :func:`make_table`.
        model_file: File of the model.
        manifest: Counts and hashes of the data.
        dataset: Name of the dataset.
        method: Name of the method.
        seed: Seed of the training.
        device: Setting of the device.
    """

    metrics: Metrics
    model: Model
    histories: dict[str, Any]
    table: pd.DataFrame
    model_file: str
    manifest: dict[str, Any]
    dataset: str
    method: str
    seed: int
    device: str

    def describe(self, kind: Kind) -> dict[str, Any]:
        """Return what the template shows of it."""
        model, about = self.model, information(Path(self.model_file))
        minutes = [
            history["minutes"] for history in self.histories.values() if "minutes" in history
        ]
        first = getattr(model, "charts", [getattr(model, "manifold", model)])[0]
        return {
            "name": about["name"] or f"{self.method} on {self.dataset}",
            "dataset": self.dataset,
            "method": self.method,
            "manifest": self.manifest,
            "stages": first.describe()["stages"],
            "has_density": model.has_density,
            "run": about,
            "seed": self.seed,
            "device": str(choose_device(self.device)),
            "usage": usage_commands(model, about["name"] or str(Path(about["model"]).parent)),
            "context": context_of(model),
            "has_condition": "condition" in model.data,
            "is_calibrated": Calibration.of(model) is not None,
            "minutes": next(iter(minutes), None),
            "phases": [*self.histories.values()],
            **_describe_metrics(self.metrics, self.table, kind),
        }


def _describe_metrics(metrics: Metrics, table: pd.DataFrame, kind: Kind) -> dict[str, Any]:
    """Return the table of metrics, their definitions and notes on them."""
    from submanifold.pipelines.reporting.sections import written

    labels = _labels(metrics)
    reached = {name: training_images_reach(metrics, name) for name in COMPARED_WITH_TEST}
    notes = {name: (METRICS[name].unit_of(kind), reached.get(name)) for name in labels}
    return {
        "metrics": metrics,
        "written": written,
        "table": table,
        "help": {label: METRICS[name].help for name, label in labels.items() if label in table},
        "notes": {labels[name]: ". ".join(filter(None, texts)) for name, texts in notes.items()},
    }


def _report(
    kind: Kind, figures: dict[str, Any], content: dict[str, Any], run: _Run
) -> dict[str, Any]:
    """Render the report of a run with figures and content of a kind of data."""
    from submanifold.plots.curves import training_curves

    trainings = {name: history for name, history in run.histories.items() if history["train"]}
    figures = {"curves": training_curves(trainings), **figures}
    page = render(
        f"report_{kind}.html",
        events={"table": "rows", "synthetic": "points"}.get(kind, kind),
        kind=kind,
        pictures=figures,
        **run.describe(kind),
        **content,
    )
    return {"report": page, **figures}


def _has_subset(metrics: Metrics) -> bool:
    return bool(metrics["encoder_mse"]["n"] < metrics["counts"]["test"])


def _labels(metrics: Metrics) -> dict[str, str]:
    count = f" ({metrics['encoder_mse']['n']:,} {events_of(metrics)})"
    size = count if _has_subset(metrics) else ""
    labels = {name: metric.label.replace(SUBSET, size) for name, metric in METRICS.items()}
    if "features" in metrics:
        on_features = ("frechet_distance", "kid", "precision", "recall")
        labels |= {name: f"{labels[name]} ({metrics['features']})" for name in on_features}
    return labels
