"""MLflow runs -> table and page of a comparison."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.compare.nodes import collect_runs, write_comparison


def create_pipeline() -> Pipeline:
    """Build the pipeline that compares the finished runs of a data set, or of the user's files."""
    dataset = {"dataset": "params:dataset", "paths": "params:own_paths"}
    shown = {"table": "comparison_table", "data_name": "params:data_name"}
    shown["reporting"] = "reporting_folder"
    return Pipeline([
        Node(collect_runs, dataset, "comparison_table", name="collect_runs"),
        Node(write_comparison, dataset | shown, "comparison", name="write_comparison"),
    ])  # fmt: skip
