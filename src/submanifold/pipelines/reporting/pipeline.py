"""metrics, histories, samples, projections -> table, pictures, report."""

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.reporting.nodes import make_table, report_images, report_points


def create_pipeline(histories: Mapping[str, str], synthetic: bool = False) -> Pipeline:
    """Build the report of a model: of images, or of points beside their true density.

    The datasets of histories are by the names of their phases, ``{"phase_1": "phase_1.history"}``.
    """
    shared = {"metrics": "metrics", "hierarchy": "hierarchy"}
    shared |= {"dataset": "params:dataset", "method": "params:method"}
    content = {"table": "metrics_table", "manifest": "manifest", "samples": "samples"}
    content |= {"test": "x_test", **histories}
    if synthetic:
        shared["truth"], content["data"] = "truth", "params:data"
        pictures = ["manifold"]
    else:
        content |= {name: name for name in ("samples_cool", "projections")}
        pictures = ["samples", "samples_cool", "rejection", "dimensions"]
    write = report_points if synthetic else report_images
    written = {"report": "report", **{name: f"{name}_figure" for name in ("curves", *pictures)}}
    return Pipeline(
        [
            Node(make_table, shared, "metrics_table", name="make_table"),
            Node(write, shared | content, written, name="write_report"),
        ]
    )
