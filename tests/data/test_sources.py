"""The contract of image sources, on tiny files of every registered one."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from source_files import (
    FakeDataset,
    numbered,
    write_celeba,
    write_folder,
    write_idx,
    write_lmdb,
    write_medmnist,
)

from submanifold.common.errors import UserError
from submanifold.data.prepare import check, prepare, read_groups, read_labels
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import SOURCES, SPLITS, fingerprint, open_source

COUNT = 60


def write_files(name, folder):
    """Write a source's files and return their path."""
    images = {f"{i:05d}.png": numbered(i) for i in range(COUNT)}
    match name:
        case "photos":
            return None
        case "celeba":
            return write_celeba(folder / "in", codes="001020" * (COUNT // 6))
        case "folder":
            return write_folder(folder / "in", images)
        case "lsun_bedroom":
            return write_lmdb(folder / "in", {k.encode(): v for k, v in images.items()})
        case "medmnist":
            return write_medmnist(folder / "in.npz")
        case "cifar10" | "svhn":
            names = ("cifar-10-batches-py/data", "train_32x32.mat", "test_32x32.mat")
            return write_folder(folder / "in", dict.fromkeys(names, b"content"))
        case _:
            return write_idx(folder / "in", packed=True)


@pytest.fixture(params=SOURCES)
def source(request, tmp_path, monkeypatch):
    """Settings of a source of tiny files."""
    for fake in ("CIFAR10", "SVHN"):
        monkeypatch.setattr(torchvision.datasets, fake, FakeDataset)
    path = write_files(request.param, tmp_path)
    return ImageSettings(source=request.param, path=path and str(path), size=8, channels=3)


def test_a_source_has_sorted_names_of_images_that_other_processes_can_decode(source, tmp_path):
    opened = open_source(source, tmp_path)
    assert opened.names == sorted(set(opened.names))
    assert len(opened.names) >= COUNT
    for name in opened.names[:3]:
        image = opened.image(name)
        assert (image.shape, image.dtype) == ((3, 8, 8), np.uint8)
        decode = pickle.loads(pickle.dumps(opened.decode))
        assert np.array_equal(decode(opened.read(name)), image)
    assert opened.labels is None or set(opened.labels) == set(opened.names)
    assert (opened.labels is not None) == SOURCES[source.source].labels
    assert opened.groups is None or set(opened.groups) == set(opened.names)
    opened.close()


def test_a_source_is_prepared_with_its_labels_and_groups(source, tmp_path):
    check(source, tmp_path / "out", tmp_path / "raw")
    *arrays, manifest = prepare(source, tmp_path / "out", tmp_path / "raw")
    counts = {split: len(array) for split, array in zip(SPLITS, arrays, strict=True)}
    assert min(counts.values()) > 0
    assert manifest["counts"] == counts
    assert manifest["fingerprint"] == fingerprint(source, tmp_path / "raw")
    for values in (read_labels(tmp_path / "out"), read_groups(tmp_path / "out")):
        assert not values or {split: len(each) for split, each in values.items()} == counts


def test_the_split_depends_on_the_seed(source, tmp_path):
    tests = []
    for seed in (0, 0, 1):
        folder = tmp_path / f"out {len(tests)}"
        chosen = source.model_copy(update={"seed": seed})
        tests.append(np.array(prepare(chosen, folder, tmp_path)[2]))
    assert np.array_equal(tests[0], tests[1])
    assert not np.array_equal(tests[0], tests[2])


def test_an_official_split_covers_all_images(source, tmp_path):
    if not SOURCES[source.source].official_split:
        pytest.skip("this source has no official split")
    opened = open_source(source.model_copy(update={"split": "official"}), tmp_path)
    assert set(opened.splits) == set(opened.names)
    assert set(opened.splits.values()) == set(SPLITS)
    opened.close()


def test_the_fingerprint_depends_on_the_content_only(source, tmp_path):
    first = fingerprint(source, tmp_path / "raw")
    assert fingerprint(source, tmp_path / "raw") == first
    if source.path is None:
        return
    copy = tmp_path / f"copy{Path(source.path).suffix}"
    (shutil.copy if Path(source.path).is_file() else shutil.copytree)(source.path, copy)
    moved = source.model_copy(update={"path": str(copy)})
    assert fingerprint(moved, tmp_path / "raw") == first
    for file in [copy, *copy.rglob("*")]:
        if file.is_file():
            file.write_bytes(file.read_bytes() + b"more")
    try:
        changed = fingerprint(moved, tmp_path / "raw")
    except UserError as error:  # a changed archive cannot be read
        changed = str(error)
    assert changed != first
    missing = source.model_copy(update={"path": str(tmp_path / "missing")})
    assert fingerprint(missing, tmp_path / "raw") == f"missing:{tmp_path / 'missing'}"
