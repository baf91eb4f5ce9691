"""The data pipeline: parameters in, named arrays out, and mistakes under the parameters' names."""

import numpy as np
import pytest

from submanifold.common.errors import UserError
from submanifold.data.settings import read_data_settings
from submanifold.pipelines.data import create_pipeline
from submanifold.pipelines.data.nodes import prepare_images

POINTS = {"source": "circle", "counts": {"train": 8, "valid": 4, "test": 2}}


def test_the_node_takes_and_gives_by_name(tmp_path):
    (node,) = create_pipeline(synthetic=True).nodes
    inputs = {"params:data": read_data_settings(POINTS), "data_folder": tmp_path / "out"}
    outputs = node.run(inputs)
    shapes = {name: outputs[name].shape for name in ("x_train", "x_valid", "x_test")}
    assert shapes == {"x_train": (8, 2), "x_valid": (4, 2), "x_test": (2, 2)}
    assert outputs["manifest"]["counts"] == POINTS["counts"]


def test_images_are_prepared_too(tmp_path):
    settings = read_data_settings({"source": "photos", "size": 8})
    made = prepare_images(settings, tmp_path / "out", tmp_path)
    assert made["train"].shape[1:] == (3, 8, 8)
    assert made["train"].dtype == np.uint8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "folder", "path": "/no/where"}, r"^data\.path=/no/where: expected a folder"),
        ({"source": "photos", "size": 200}, r"^data\.size: expected at most 128"),
        ({"source": "photos", "counts": {"train": 10**6}}, r"^data\.counts\.train: expected at mo"),
    ],
)
def test_a_mistake_is_told_under_the_parameters_name(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        prepare_images(read_data_settings(settings), tmp_path / "out", tmp_path)
