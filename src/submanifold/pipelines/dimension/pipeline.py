"""Model, metrics and data -> estimates of the dimension, advice, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.dimension.nodes import estimate, write_page


def create_pipeline() -> Pipeline:
    """Build the pipeline that follows the evaluation of a model."""
    return Pipeline(
        [
            Node(
                estimate,
                inputs=["hierarchy", "metrics", "baselines", "x_train", "x_test", "groups",
                        "params:device"],
                outputs="dimension_metrics",
                name="estimate_dimension",
            ),
            Node(
                write_page,
                inputs=["dimension_metrics", "metrics", "baselines", "params:data_name",
                        "params:method", "params:model_file"],
                outputs={"page": "dimension_report", "curve": "dimension_figure"},
                name="report_dimension",
            ),
        ],
        namespace="dimension",
        prefix_datasets_with_namespace=False,
    )  # fmt: skip
