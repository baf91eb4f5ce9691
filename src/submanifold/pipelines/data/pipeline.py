"""Source of the data -> events of each split, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.data.nodes import prepare_data


def create_pipeline() -> Pipeline:
    """Build the data pipeline."""
    return Pipeline(
        [
            Node(
                prepare_data,
                inputs=["params:data", "data_folder", "raw_folder"],
                outputs=["x_train", "x_valid", "x_test", "manifest"],
                name="prepare_data",
            )
        ],
        namespace="data",
        prefix_datasets_with_namespace=False,
    )
