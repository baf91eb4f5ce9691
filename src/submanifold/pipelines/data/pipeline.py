"""Source of the data -> arrays of each split, their labels, groups and rows, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.data.nodes import prepare_data

SOURCE = {"data": "params:data", "folder": "data_folder", "raw_folder": "raw_folder"}
PREPARED = {"train": "x_train", "valid": "x_valid", "test": "x_test", "labels": "labels",
            "groups": "groups", "rows": "rows", "manifest": "manifest"}  # fmt: skip


def create_pipeline() -> Pipeline:
    """Build the data pipeline."""
    node = Node(prepare_data, SOURCE, PREPARED, name="prepare_data")
    return Pipeline([node], namespace="data", prefix_datasets_with_namespace=False)
