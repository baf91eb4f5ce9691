"""download/resize -> x_train, x_valid, x_test, their labels and groups, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.data.nodes import draw_points, prepare_images


def create_pipeline(synthetic: bool = False) -> Pipeline:
    """Build the data pipeline, of images or of points with a known density."""
    inputs = {"data": "params:data", "folder": "data_folder"}
    outputs = {part: f"x_{part}" for part in ("train", "valid", "test")}
    outputs |= {"manifest": "manifest"}
    if not synthetic:
        outputs |= {"labels": "labels", "groups": "groups"}
    return Pipeline(
        [
            Node(
                draw_points if synthetic else prepare_images,
                inputs=inputs if synthetic else {**inputs, "raw_folder": "raw_folder"},
                outputs=outputs,
                name="prepare_data",
            )
        ]
    )
