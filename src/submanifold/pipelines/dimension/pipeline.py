"""Pipeline: model, metrics and data -> estimates of the dimension, advice, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.dimension.nodes import estimate, write_page


def create_pipeline() -> Pipeline:
    """Build the pipeline that follows the evaluation of a model."""
    estimated = {"model": "hierarchy", "metrics": "metrics", "baselines": "baselines",
                 "train": "x_train", "test": "x_test", "groups": "groups",
                 "device": "params:device"}  # fmt: skip
    shown = {"found": "dimension_metrics", "metrics": "metrics", "baselines": "baselines",
             "dataset": "params:data_name", "method": "params:method",
             "run": "run_information"}  # fmt: skip
    written = {"page": "dimension_report", "curve": "dimension_figure"}
    return Pipeline([
        Node(estimate, estimated, "dimension_metrics", name="estimate_dimension"),
        Node(write_page, shown, written, name="report_dimension"),
    ])  # fmt: skip
