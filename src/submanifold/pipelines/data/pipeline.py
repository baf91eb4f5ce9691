"""Source of the data -> arrays of each split, their labels, groups and rows, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.data.nodes import prepare_data


def create_pipeline() -> Pipeline:
    """Build the data pipeline."""
    return Pipeline(
        [
            Node(
                prepare_data,
                inputs=["params:data", "data_folder", "raw_folder"],
                outputs=["x_train", "x_valid", "x_test", "manifest", "labels", "groups", "rows"],
                name="prepare_data",
            )
        ],
        namespace="data",
        prefix_datasets_with_namespace=False,
    )
