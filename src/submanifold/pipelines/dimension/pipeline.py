"""Model, metrics and data -> estimates of the dimension, advice, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.dimension.nodes import estimate, write_page

ESTIMATED = {"model": "hierarchy", "metrics": "metrics", "baselines": "baselines",
             "train": "x_train", "test": "x_test", "groups": "groups",
             "device": "params:device"}  # fmt: skip
SHOWN = {"found": "dimension_metrics", "metrics": "metrics", "baselines": "baselines",
         "dataset": "params:data_name", "method": "params:method",
         "model_file": "model_file"}  # fmt: skip


def create_pipeline() -> Pipeline:
    """Build the pipeline that follows the evaluation of a model."""
    written = {"page": "dimension_report", "curve": "dimension_figure"}
    estimates = Node(estimate, ESTIMATED, "dimension_metrics", name="estimate_dimension")
    page = Node(write_page, SHOWN, written, name="report_dimension")
    return Pipeline([estimates, page], namespace="dimension", prefix_datasets_with_namespace=False)
