"""Datasets of arrays, models and paths."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError
from PIL import Image

from submanifold.data.arrays import write_npy
from submanifold.data.prepare import draw
from submanifold.data.settings import SyntheticSettings
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.runs import information
from submanifold.runs.datasets import (
    ArrayDataset,
    ArraysDataset,
    CSVDataset,
    JSONDataset,
    ModelDataset,
    PathDataset,
    PreparedDataset,
    RunInformationDataset,
)

RNG = np.random.default_rng(0)
ARRAYS = {
    "colour": RNG.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8),
    "grey": RNG.integers(0, 256, (5, 1, 8, 8), dtype=np.uint8),
    "latents": RNG.standard_normal((40, 6)).astype(np.float32),
}


@pytest.fixture
def dataset(tmp_path):
    return ArrayDataset(filepath=str(tmp_path / "deep" / "array.npy"), metadata={"any": 1})


def test_changes_of_a_loaded_array_stay_in_memory(dataset):
    dataset.save(ARRAYS["latents"])
    loaded = dataset.load()
    assert isinstance(loaded, np.memmap)
    torch.from_numpy(loaded)[:] = 0
    assert (loaded == 0).all()
    np.testing.assert_array_equal(dataset.load(), ARRAYS["latents"])


def test_saving_a_map_of_the_file_does_not_write_it(dataset, tmp_path):
    dataset.save(ARRAYS["colour"])
    path = tmp_path / "deep" / "array.npy"
    before = path.stat()
    dataset.save(dataset.load())
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    other = ArrayDataset(filepath=str(tmp_path / "other.npy"))
    other.save(dataset.load())
    np.testing.assert_array_equal(other.load(), ARRAYS["colour"])


def test_slice_of_the_file_is_written(dataset):
    dataset.save(ARRAYS["colour"])
    dataset.save(dataset.load()[:2])
    np.testing.assert_array_equal(dataset.load(), ARRAYS["colour"][:2])


@pytest.mark.parametrize("kind", ARRAYS)
def test_preview_is_a_png(dataset, kind):
    dataset.save(ARRAYS[kind])
    image = Image.open(io.BytesIO(base64.b64decode(dataset.preview())))
    assert image.format == "PNG"


def test_truncated_array_does_not_exist(dataset, tmp_path):
    dataset.save(ARRAYS["latents"])
    path = tmp_path / "deep" / "array.npy"
    content = path.read_bytes()
    for length in (len(content) - 1, 130, 60, 0):
        path.write_bytes(content[:length])
        assert not dataset.exists()
    path.write_bytes(content)
    assert dataset.exists()


def test_changed_prepared_array_does_not_exist_and_is_not_loaded(tmp_path):
    counts = {"train": 8, "valid": 4, "test": 2}
    train, *_ = draw(SyntheticSettings(source="circle", counts=counts), tmp_path)
    dataset = PreparedDataset(filepath=str(tmp_path / "train.npy"))
    assert dataset.exists()
    np.testing.assert_array_equal(dataset.load(), train)
    content = bytearray((tmp_path / "valid.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "valid.npy").write_bytes(content)
    assert not dataset.exists()
    with pytest.raises(DatasetError, match=r"do not match the hash.*kedro run --pipeline=data"):
        dataset.load()


WRITTEN = {
    "u_train.npy": (ArrayDataset, ARRAYS["latents"]),
    "baselines.json": (JSONDataset, {"gaussian": {"bits_per_dim": 3.25}}),
    "scores.csv": (CSVDataset, pd.DataFrame({"score": [1.5, 2.5]})),
}


def flip(path):
    """Change one digit or bit near the end of a file, which stays readable."""
    content = bytearray(path.read_bytes())
    content[-4 if path.suffix == ".csv" else -2 if path.suffix == ".npy" else -7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", WRITTEN)
def test_changed_file_does_not_exist_and_is_not_loaded_until_it_is_saved_again(tmp_path, name):
    kind, data = WRITTEN[name]
    dataset, path = kind(filepath=str(tmp_path / name)), tmp_path / name
    dataset.save(data)
    before = path.read_bytes()
    dataset.load()
    assert dataset.exists()
    flip(path)
    assert not dataset.exists()
    with pytest.raises(DatasetError, match=f"{name}: expected the content that was written"):
        dataset.load()
    dataset.save(data)
    assert path.read_bytes() == before
    assert dataset.exists()
    dataset.load()


def test_saving_again_does_not_vouch_for_a_changed_file(tmp_path):
    """Nodes return what they find in a folder; what has changed there must be made again."""
    path = tmp_path / "u_train.npy"
    dataset = ArrayDataset(filepath=str(path))
    rows = ARRAYS["latents"]
    dataset.save(write_npy(path, [rows], rows.shape))
    flip(path)
    dataset.save(write_npy(path, [rows], rows.shape))
    np.testing.assert_array_equal(dataset.load(), rows)
    settings = SyntheticSettings(source="circle", counts={"train": 8, "valid": 4, "test": 2})
    manifest = JSONDataset(filepath=str(tmp_path / "manifest.json"))
    manifest.save(draw(settings, tmp_path)[3])
    before = manifest.load()
    flip(tmp_path / "manifest.json")
    manifest.save(draw(settings, tmp_path)[3])
    assert manifest.load() == before


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
    preview = json.loads(models.preview())
    assert [stage["dim"] for stage in preview["stages"]] == [6, 2]
    assert preview["notes"] == loaded.notes


def test_invalid_model_file_does_not_exist_and_is_not_loaded(models, tmp_path):
    path = tmp_path / "photos-phase_1-abc" / "flow.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    assert not models.exists()
    with pytest.raises(DatasetError, match=r"Model\.save"):
        models.load()


def test_path_is_an_input_only(tmp_path):
    dataset = PathDataset(filepath=str(tmp_path / "a" / "b" / "file.json"))
    assert dataset.exists()
    assert dataset.load() == tmp_path / "a" / "b" / "file.json"
    assert dataset.load().parent.is_dir()
    with pytest.raises(DatasetError, match="cannot be an output"):
        dataset.save(tmp_path)


def test_named_arrays_are_saved_and_loaded(tmp_path):
    dataset = ArraysDataset(filepath=str(tmp_path / "new" / "arrays.npz"))
    assert not dataset.exists()
    dataset.save(ARRAYS)
    loaded = dataset.load()
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)
    path = tmp_path / "new" / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-100])
    assert not dataset.exists()


def test_information_about_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/bin/kedro", "run", "--params=data.path=my pictures"])
    dataset = RunInformationDataset(filepath=str(tmp_path / "data" / "key" / "model.safetensors"))
    assert dataset.exists()
    found = dataset.load()
    assert found["command"] == "kedro run '--params=data.path=my pictures'"
    assert found["model"] == "data/key/model.safetensors"
    assert found["name"] is found["mlflow_run"] is None
    with pytest.raises(DatasetError, match="cannot be an output"):
        dataset.save({})
    monkeypatch.setattr(information, "__file__", str(tmp_path / "site-packages" / "x.py"))
    information._commit.cache_clear()
    assert dataset.load()["commit"] is None
    information._commit.cache_clear()
