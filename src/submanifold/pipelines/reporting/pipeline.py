"""Metrics, histories, samples and projections -> table, figures and report."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment
from submanifold.pipelines.reporting import nodes

SHARED = {"metrics": "metrics", "hierarchy": "hierarchy", "method": "params:method"}
CONTENT = {"table": "metrics_table", "manifest": "manifest", "samples": "samples", "test": "x_test",
           "model_file": "model_file", "dataset": "params:data_name", "seed": "params:seed",
           "device": "params:device"}  # fmt: skip
# the report's node, its further inputs and its figures
BY_KIND: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "images": (
        nodes.report_images,
        ("samples_t07", "projections", "illustrations", "split_scores"),
        ("curves", "samples", "samples_t07", "rejection", "dimensions"),
    ),
    "table": (
        nodes.report_table,
        ("split_scores", "anomalies"),
        ("curves", "marginals", "pairs", "dimensions"),
    ),
    "synthetic": (nodes.report_synthetic, ("truth",), ("curves", "manifold")),
}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the report of an experiment."""
    report, further, figures = BY_KIND[experiment.kind]
    shared, content = dict(SHARED), CONTENT | {name: name for name in further}
    content |= {name: f"{name}.history" for name in experiment.phases}
    if experiment.kind == "synthetic":
        shared["truth"], content["data"] = "truth", "params:data"
    written = {"report": "report"} | {name: f"{name}_figure" for name in figures}
    table = Node(nodes.make_table, shared, "metrics_table", name="make_table")
    page = Node(report, shared | content, written, name="write_report")
    return Pipeline([table, page], namespace="report", prefix_datasets_with_namespace=False)
