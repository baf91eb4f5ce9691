"""Pipeline from metrics, histories, samples and projections to table, figures and report."""

from collections.abc import Callable, Mapping
from typing import Any

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Kind
from submanifold.pipelines.reporting.nodes import (
    make_table,
    report_images,
    report_points,
    report_table,
)

REPORTS: dict[Kind, Callable[..., Any]] = {
    "images": report_images,
    "points": report_points,
    "table": report_table,
}
SHOWN: dict[Kind, tuple[str, ...]] = {
    "images": ("samples_cool", "projections", "illustrations", "split_scores"),
    "points": ("truth",),
    "table": ("split_scores", "anomalies"),
}
FIGURES: dict[Kind, tuple[str, ...]] = {
    "images": ("curves", "samples", "samples_cool", "rejection", "dimensions"),
    "points": ("curves", "manifold"),
    "table": ("curves", "marginals", "pairs", "dimensions"),
}
"""Nodes, further inputs and figures of a report, by the kind of the data."""


def create_pipeline(histories: Mapping[str, str], kind: Kind = "images") -> Pipeline:
    """Create the reporting pipeline.

    Args:
        histories: Datasets of the training histories by phase, ``{"density": "density.history"}``.
        kind: Kind of the data.
    """
    shared = {"metrics": "metrics", "hierarchy": "hierarchy"}
    shared |= {"dataset": "params:data_name", "method": "params:method"}
    content = {"table": "metrics_table", "manifest": "manifest", "samples": "samples"}
    content |= {"test": "x_test", "run": "run_information", **histories}
    content |= {name: f"params:{name}" for name in ("seed", "device")}
    content |= {name: name for name in SHOWN[kind]}
    if kind == "points":
        shared["truth"], content["data"] = "truth", "params:data"
    outputs = {"report": "report", **{name: f"{name}_figure" for name in FIGURES[kind]}}
    return Pipeline([
        Node(make_table, shared, "metrics_table", name="make_table"),
        Node(REPORTS[kind], shared | content, outputs, name="write_report"),
    ])  # fmt: skip
