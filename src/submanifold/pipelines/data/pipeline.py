"""download/resize -> images_train, images_valid, images_test, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.data.nodes import prepare_images


def create_pipeline() -> Pipeline:
    """Build the data pipeline."""
    return Pipeline(
        [
            Node(
                prepare_images,
                inputs=["params:data", "images_folder", "raw_folder"],
                outputs=["images_train", "images_valid", "images_test", "manifest"],
                name="prepare_images",
            )
        ]
    )
