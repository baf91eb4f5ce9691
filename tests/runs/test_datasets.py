"""Datasets of arrays, models and paths."""

import numpy as np
import pytest
import torch
from kedro.io import DatasetError

from submanifold.data.prepare import draw
from submanifold.data.settings import SyntheticSettings
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.runs.datasets import ModelDataset, PreparedDataset


def test_changed_prepared_array_does_not_exist_and_is_not_loaded(tmp_path):
    counts = {"train": 8, "valid": 4, "test": 2}
    train, *_ = draw(SyntheticSettings(source="circle", counts=counts), tmp_path)
    dataset = PreparedDataset(filepath=str(tmp_path / "train.npy"))
    assert dataset.exists()
    np.testing.assert_array_equal(dataset.load(), train)
    content = bytearray((tmp_path / "train.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "train.npy").write_bytes(content)
    assert not dataset.exists()
    with pytest.raises(
        DatasetError, match=r"does not have its checksum.*kedro run --pipeline=data"
    ):
        dataset.load()


@pytest.fixture
def models(tmp_path):
    return ModelDataset(filepath=str(tmp_path / "photos-phase_1-abc" / "flow.safetensors"))


def test_model_is_saved_with_its_key_and_loaded(models):
    model = Hierarchy([Stage(RealNVP(6, 2), 6), Stage(RealNVP(6, 2), 2)])
    model.notes = {"step": 7}
    models.save(model)
    loaded = models.load()
    assert not loaded.training
    assert loaded.notes == {"step": 7, "key": "photos-phase_1-abc"}
    x = torch.randn(4, 6)
    assert torch.equal(loaded.log_prob(x), model.eval().log_prob(x))


def test_invalid_model_file_does_not_exist_and_is_not_loaded(models, tmp_path):
    path = tmp_path / "photos-phase_1-abc" / "flow.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    assert not models.exists()
    with pytest.raises(DatasetError, match=r"Model\.save"):
        models.load()
