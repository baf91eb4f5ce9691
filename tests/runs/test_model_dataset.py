import json

import pytest
import torch
from kedro.io import DatasetError

from submanifold.flows import Glow, RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.runs.datasets import ModelDataset


@pytest.fixture
def hierarchy():
    torch.manual_seed(0)
    made = Hierarchy([Stage(Glow((3, 8, 8), 2, 1, 4), 24), Stage(RealNVP(24, 2), 6)])
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    made.notes = {"step": 7}
    return made


@pytest.fixture
def dataset(tmp_path):
    return ModelDataset(filepath=str(tmp_path / "photos-phase_1-abc" / "flow.safetensors"))


def test_what_is_saved_is_loaded_with_its_key(dataset, hierarchy):
    assert not dataset.exists()
    dataset.save(hierarchy)
    assert dataset.exists()
    loaded = dataset.load()
    assert not loaded.training
    assert loaded.notes == {"step": 7, "key": "photos-phase_1-abc"}
    x = torch.rand(4, 3, 8, 8) - 0.5
    assert torch.equal(loaded.log_prob(x), hierarchy.eval().log_prob(x))


def test_the_preview_is_the_architecture_and_the_notes(dataset, hierarchy):
    dataset.save(hierarchy)
    preview = json.loads(dataset.preview())
    flows = [each["type"] for stage in preview["stages"] for each in stage["bijections"]]
    assert flows == ["glow", "realnvp"]
    assert [stage["dim"] for stage in preview["stages"]] == [24, 6]
    assert preview["parameters"] == sum(p.numel() for p in hierarchy.parameters())
    assert preview["notes"]["key"] == "photos-phase_1-abc"


def test_nothing_but_the_file_is_left(dataset, hierarchy, tmp_path):
    dataset.save(hierarchy)
    dataset.save(hierarchy)
    assert [p.name for p in (tmp_path / "photos-phase_1-abc").iterdir()] == ["flow.safetensors"]


def test_a_file_that_is_no_flow_ends_in_a_message(dataset, tmp_path):
    path = tmp_path / "photos-phase_1-abc" / "flow.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    with pytest.raises(DatasetError, match=r"that Model\.save did not write"):
        dataset.load()
