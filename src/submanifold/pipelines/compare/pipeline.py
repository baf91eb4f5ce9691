"""finished runs of a dataset -> table, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.compare.nodes import collect_runs, write_comparison


def create_pipeline() -> Pipeline:
    """Build the comparison, whose input is what MLflow has."""
    return Pipeline(
        [
            Node(
                collect_runs,
                inputs="params:dataset",
                outputs="comparison_table",
                name="collect_runs",
            ),
            Node(
                write_comparison,
                inputs=["comparison_table", "params:dataset"],
                outputs="comparison",
                name="write_comparison",
            ),
        ]
    )
