"""Pipeline from metrics, histories, samples and projections to table, figures and report."""

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Kind
from submanifold.pipelines.reporting.nodes import make_table, report_images, report_points


def create_pipeline(histories: Mapping[str, str], kind: Kind = "images") -> Pipeline:
    """Create the reporting pipeline.

    Args:
        histories: Datasets of the training histories by phase, ``{"density": "density.history"}``.
        kind: Kind of the data.
    """
    shared = {"metrics": "metrics", "hierarchy": "hierarchy"}
    shared |= {"dataset": "params:dataset", "method": "params:method"}
    content = {"table": "metrics_table", "manifest": "manifest", "samples": "samples"}
    content |= {"test": "x_test", "run": "run_information", **histories}
    content |= {name: f"params:{name}" for name in ("seed", "device")}
    if kind == "points":
        shared["truth"], content["data"] = "truth", "params:data"
        figures = ["curves", "manifold"]
    else:
        names = ("samples_cool", "projections", "illustrations", "image_scores")
        content |= {name: name for name in names}
        figures = ["curves", "samples", "samples_cool", "rejection", "dimensions"]
    report = report_points if kind == "points" else report_images
    outputs = {"report": "report", **{name: f"{name}_figure" for name in figures}}
    return Pipeline([
        Node(make_table, shared, "metrics_table", name="make_table"),
        Node(report, shared | content, outputs, name="write_report"),
    ])  # fmt: skip
