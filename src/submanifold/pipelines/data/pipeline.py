"""Source of the data -> x_train, x_valid, x_test, their labels and groups, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.data.nodes import draw_points, prepare_images


def create_pipeline(synthetic: bool = False) -> Pipeline:
    """Build the data pipeline, of images or of points with a known density."""
    inputs = {"data": "params:data", "folder": "data_folder"}
    outputs = {"train": "x_train", "valid": "x_valid", "test": "x_test", "manifest": "manifest"}
    if synthetic:
        return Pipeline([Node(draw_points, inputs, outputs, name="prepare_data")])
    inputs["raw_folder"] = "raw_folder"
    outputs |= {"labels": "labels", "groups": "groups"}
    return Pipeline([Node(prepare_images, inputs, outputs, name="prepare_data")])
