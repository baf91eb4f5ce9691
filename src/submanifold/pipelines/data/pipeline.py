"""Source of the data -> x_train, x_valid, x_test, their labels and groups, manifest."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Kind
from submanifold.pipelines.data.nodes import draw_points, prepare_images, prepare_rows


def create_pipeline(kind: Kind = "images") -> Pipeline:
    """Build the data pipeline of a kind of data."""
    inputs = {"data": "params:data", "folder": "data_folder"}
    outputs = {"train": "x_train", "valid": "x_valid", "test": "x_test", "manifest": "manifest"}
    if kind == "points":
        return Pipeline([Node(draw_points, inputs, outputs, name="prepare_data")])
    inputs["raw_folder"] = "raw_folder"
    outputs |= {"labels": "labels", "groups": "groups"}
    if kind == "table":
        outputs["rows"] = "rows"
    function = prepare_rows if kind == "table" else prepare_images
    return Pipeline([Node(function, inputs, outputs, name="prepare_data")])
