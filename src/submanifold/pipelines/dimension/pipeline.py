"""hierarchy, metrics, x_train, x_test -> estimates, advice, the page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.dimension.nodes import estimate, write_page


def create_pipeline() -> Pipeline:
    """Build what comes after a model is evaluated."""
    measured = {"model": "hierarchy", "metrics": "metrics", "baselines": "baselines",
                "train": "x_train", "test": "x_test", "groups": "groups",
                "device": "params:device"}  # fmt: skip
    shown = {"found": "dimension_metrics", "metrics": "metrics", "dataset": "params:dataset",
             "method": "params:method"}  # fmt: skip
    written = {"page": "dimension_report", "curve": "dimension_figure"}
    return Pipeline(
        [
            Node(estimate, measured, "dimension_metrics", name="estimate_dimension"),
            Node(write_page, shown, written, name="report_dimension"),
        ]
    )
