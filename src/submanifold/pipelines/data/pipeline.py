"""Source of the data -> arrays of each split, their labels, groups and rows, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.data.nodes import prepare_data


def create_pipeline() -> Pipeline:
    """Build the data pipeline."""
    return Pipeline(
        [
            Node(
                prepare_data,
                inputs={"data": "params:data", "folder": "data_folder", "raw_folder": "raw_folder"},
                outputs={
                    "train": "x_train", "valid": "x_valid", "test": "x_test", "labels": "labels",
                    "groups": "groups", "rows": "rows", "manifest": "manifest",
                },
                name="prepare_data",
            )
        ],
        namespace="data",
        prefix_datasets_with_namespace=False,
    )  # fmt: skip
