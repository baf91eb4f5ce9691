"""Datasets of files, arrays, models and paths."""

import errno

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from kedro.io import AbstractDataset, DataCatalog, DatasetError
from matplotlib.figure import Figure

from submanifold.common.errors import UserError
from submanifold.config.project import PACKAGED_CONF
from submanifold.data import Events
from submanifold.data.prepare import draw
from submanifold.data.settings import SyntheticSettings
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.runs.datasets import ArraysDataset, AtomicDataset, EventsDataset, ModelDataset

ROWS = np.arange(12.0).reshape(6, 2)
WRITTEN = {
    "array": ("ArrayDataset", ROWS, "ImagePreview"),
    "arrays": ("ArraysDataset", {"a": ROWS}, None),
    "json": ("json.JSONDataset", {"a": [1, 2]}, "JSONPreview"),
    "csv": (
        {"type": "pandas.CSVDataset", "save_args": {"index": False}},
        pd.DataFrame({"a": [1, 2]}),
        "TablePreview",
    ),
    "text": ("text.TextDataset", "a page", None),
    "figure": ("matplotlib.MatplotlibDataset", Figure(), "ImagePreview"),
}


def test_names_such_as_null_are_no_missing_values(tmp_path):
    catalog = yaml.safe_load((PACKAGED_CONF / "base/catalog.yml").read_text("utf-8"))
    entry = {**catalog["_csv"], "filepath": str(tmp_path / "a.csv")}
    dataset = AbstractDataset.from_config("anomalies", entry)
    rows = pd.DataFrame({"column": ["null", "NA"], "p_value": [0.5, np.nan]})
    dataset.save(rows)
    pd.testing.assert_frame_equal(dataset.load(), rows)


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("is_logged", [False, True])
def test_a_file_that_exists_is_whole_and_has_a_preview(tmp_path, monkeypatch, kind, is_logged):
    of, data, preview = WRITTEN[kind]
    path = tmp_path / "new" / "file.dat"
    entry = {"type": "submanifold.runs.datasets.AtomicDataset", "dataset": of}
    if kind.startswith("array"):
        entry = {"type": f"submanifold.runs.datasets.{of}"}
    entry["filepath"] = str(path)
    if is_logged:
        monkeypatch.setattr("mlflow.log_artifact", lambda file, folder: None)
        entry = {"type": "kedro_mlflow.io.artifacts.MlflowArtifactDataset", "dataset": entry}
    dataset = AbstractDataset.from_config(kind, entry)
    assert not dataset.exists()
    renamed = []

    def fail(temporary, final):
        renamed.append(temporary)
        raise OSError(errno.ENOSPC, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(DatasetError, match="the disk is full"):
            dataset.save(data)
    assert renamed[0].parent == path.parent
    assert list(path.parent.iterdir()) == []
    dataset.save(data)
    assert dataset.exists()
    assert [file.name for file in path.parent.iterdir()] == ["file.dat"]
    if kind != "figure":
        loaded = dataset.load()
        equal = (loaded["a"] == data["a"]) if kind in ("arrays", "csv") else (loaded == data)
        assert np.all(equal)
    named = getattr(getattr(dataset, "preview", None), "__annotations__", {}).get("return")
    assert getattr(named, "__name__", named) == preview


@pytest.mark.parametrize("dataset", [EventsDataset, ArraysDataset, ModelDataset, "json"])
def test_an_artifact_that_is_missing_is_explained(tmp_path, dataset):
    path = str(tmp_path / "metrics.json")
    if dataset == "json":
        missing = AtomicDataset(filepath=path, dataset="json.JSONDataset")
    else:
        missing = dataset(filepath=path)
    with pytest.raises(DatasetError) as caught:
        DataCatalog({"metrics": missing}).load("metrics")
    assert str(caught.value) == (
        f"metrics: {path}: not computed for these settings. `submanifold run` with the same "
        "parameters computes it."
    )


@pytest.mark.parametrize("kind", [*sorted(set(WRITTEN) - {"text", "figure"}), "model"])
@pytest.mark.parametrize("size", [0, 0.5, -1], ids=["empty", "half", "one byte less"])
def test_a_damaged_file_is_named_and_moved_aside(tmp_path, kind, size):
    suffix = ".csv" if kind == "csv" else ".dat"
    path = tmp_path / f"file{suffix}"
    if kind == "model":
        dataset, data = ModelDataset(filepath=str(path)), Hierarchy([Stage(RealNVP(4), 2)])
    else:
        of, data, _ = WRITTEN[kind]
        entry = {"type": "submanifold.runs.datasets.AtomicDataset", "dataset": of}
        if kind.startswith("array"):
            entry = {"type": f"submanifold.runs.datasets.{of}"}
        dataset = AbstractDataset.from_config(kind, {**entry, "filepath": str(path)})
    dataset.save(data)
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content)) if size >= 0 else -1])
    with pytest.raises(UserError, match=rf"^{path}: expected a whole file, [^\n]*$"):
        dataset.load()
    assert [file.name for file in tmp_path.iterdir()] == [f"{path.name}.damaged"]
    assert not dataset.exists()


def test_a_flipped_bit_in_prepared_arrays_is_noticed_and_they_are_prepared_again(tmp_path):
    settings = SyntheticSettings(source="circle", counts={"train": 8, "valid": 4, "test": 2})
    draw(settings, tmp_path)
    path = tmp_path / "train.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"^{path}: expected a whole file, .* manifest\.json"):
        EventsDataset(filepath=str(path)).load()
    draw(settings, tmp_path)
    assert path.read_bytes() == content


def test_events_that_their_node_has_written_are_not_written_again(tmp_path):
    counts = {"train": 8, "valid": 4, "test": 2}
    train, *_ = draw(SyntheticSettings(source="circle", counts=counts), tmp_path)
    written = (tmp_path / "train.npy").stat().st_ino
    dataset = EventsDataset(filepath=str(tmp_path / "train.npy"))
    dataset.save(train)
    assert (tmp_path / "train.npy").stat().st_ino == written
    (tmp_path / "manifest.json").unlink()  # of other arrays than the following ones
    np.save(tmp_path / "other.npy", ROWS)
    dataset.save(Events(np.load(tmp_path / "other.npy", mmap_mode="r")))
    np.testing.assert_array_equal(dataset.load().x, ROWS)
    dataset.save(train[:3])
    np.testing.assert_array_equal(dataset.load().x, train[:3].x)


def test_events_are_saved_with_their_context_and_groups(tmp_path):
    dataset = EventsDataset(filepath=str(tmp_path / "u.npy"))
    dataset.save(Events(ROWS, np.arange(6), np.arange(6) // 2))
    np.testing.assert_array_equal(dataset.load().context, np.arange(6))
    np.testing.assert_array_equal(dataset.load().groups, np.arange(6) // 2)
    dataset.save(Events(ROWS))
    assert (dataset.load().context, dataset.load().groups) == (None, None)


def test_model_is_saved_with_its_key_and_loaded(tmp_path):
    models = ModelDataset(filepath=str(tmp_path / "photos-phase_1-abc" / "flow.safetensors"))
    model = Hierarchy([Stage(RealNVP(6, 2), 6), Stage(RealNVP(6, 2), 2)])
    assert not models.exists()
    models.save(model.with_facts(notes={"step": 7}))
    assert models.exists()
    loaded = models.load()
    assert not loaded.training
    assert loaded.notes == {"step": 7, "key": "photos-phase_1-abc"}
    x = torch.randn(4, 6)
    assert torch.equal(loaded.log_prob(x), model.eval().log_prob(x))
