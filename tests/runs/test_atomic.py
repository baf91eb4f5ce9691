"""Kedro's file datasets with atomic writes."""

import errno
import json
from typing import get_type_hints

import fsspec.implementations.local as local
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from kedro.io import DatasetError
from kedro_datasets import json as kedro_json
from kedro_datasets import matplotlib, pandas, plotly, text
from matplotlib.figure import Figure
from plotly import graph_objects

from submanifold.plots.images import DPI
from submanifold.runs import datasets


def picture():
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2])
    return figure


TABLE = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
KINDS = {
    # name: (our class, Kedro's class, content)
    "json": (datasets.JSONDataset, kedro_json.JSONDataset, lambda: {"a": [1, None]}),
    "csv": (datasets.CSVDataset, pandas.CSVDataset, lambda: TABLE),
    "html": (datasets.TextDataset, text.TextDataset, lambda: "<html>\n</html>"),
    "plotly": (
        datasets.PlotlyDataset,
        plotly.JSONDataset,
        lambda: graph_objects.Figure(graph_objects.Scatter(x=[1, 2], y=[3, 4])),
    ),
    "png": (datasets.MatplotlibDataset, matplotlib.MatplotlibDataset, picture),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def dataset(kind, tmp_path):
    return KINDS[kind][0](filepath=str(tmp_path / "new" / f"file.{kind}"), metadata={"any": 1})


def test_file_has_the_bytes_of_kedros_dataset(kind, dataset, tmp_path):
    assert not dataset.exists()
    _, parent, make = KINDS[kind]
    dataset.save(make())
    assert dataset.exists()
    options = {"save_args": {"dpi": DPI}} if kind == "png" else {}
    parent(filepath=str(tmp_path / "kedro"), **options).save(make())
    path = tmp_path / "new" / f"file.{kind}"
    assert path.read_bytes() == (tmp_path / "kedro").read_bytes()
    checksum = set() if kind == "png" else {f".{path.name}.sha256"}
    assert {file.name for file in path.parent.iterdir()} == {path.name} | checksum


def test_saved_data_are_loaded(kind, dataset):
    data = KINDS[kind][2]()
    dataset.save(data)
    if kind == "png":
        with pytest.raises(DatasetError, match="Loading not supported"):
            dataset.load()
    elif kind == "csv":
        pd.testing.assert_frame_equal(dataset.load(), data)
    else:
        assert dataset.load() == data


def test_full_disk_keeps_the_old_file(kind, dataset, tmp_path, monkeypatch):
    make = KINDS[kind][2]
    dataset.save(make())
    path = tmp_path / "new" / f"file.{kind}"
    before = path.read_bytes()
    files = sorted(path.parent.iterdir())

    def fill(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.LocalFileOpener, "write", fill)
    monkeypatch.setattr(Figure, "savefig", fill)
    with pytest.raises(DatasetError, match="No space left"):
        dataset.save({"b": 2} if kind == "json" else make())
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files


def test_truncated_file_does_not_exist(kind, dataset, tmp_path):
    dataset.save(KINDS[kind][2]())
    path = tmp_path / "new" / f"file.{kind}"
    content = path.read_bytes()
    for length in {0} if kind == "html" else {0, 1, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:length])
        assert not dataset.exists()


def test_preview_is_kedros(kind, dataset, tmp_path):
    own, parent, make = KINDS[kind]
    dataset.save(make())
    if kind == "png":  # which does not inherit it
        assert get_type_hints(own.preview) == get_type_hints(parent.preview)
    else:
        assert getattr(own, "preview", None) is getattr(parent, "preview", None)
    if kind != "html":
        twin = parent(filepath=str(tmp_path / "new" / f"file.{kind}"))
        assert json.dumps(dataset.preview()) == json.dumps(twin.preview())
