"""The contract of image sources, on tiny files of every registered one."""

import os
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

from sidecars import read_sidecar
from submanifold.common.errors import UserError
from submanifold.data.prepare import check, prepare
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import SOURCES
from submanifold.data.splits import SPLITS

COUNT = 60


def write_files(name, folder):
    """Write a source's files and return their path."""
    images = {f"{i:05d}.png": numbered(i) for i in range(COUNT)}
    match name:
        case "photos" | "digits":
            return None
        case "celeba":
            return write_celeba(folder / "in", codes="001020" * (COUNT // 6))
        case "folder":
            return write_folder(folder / "in", images)
        case "lsun_bedroom":
            return write_lmdb(folder / "in", {k.encode(): v for k, v in images.items()})
        case "medmnist":
            return write_medmnist(folder / "in.npz")
        case "cifar10":
            return write_folder(folder / "in", {"cifar-10-batches-py/data": b"content"})
        case "svhn":
            names = ("train_32x32.mat", "test_32x32.mat")
            return write_folder(folder / "in", dict.fromkeys(names, b"content"))
        case _:
            return write_idx(folder / "in", packed=True)


@pytest.fixture(params=SOURCES)
def source(request, tmp_path, monkeypatch):
    """Settings of a source of tiny files."""
    for fake in ("CIFAR10", "SVHN"):
        monkeypatch.setattr(torchvision.datasets, fake, FakeDataset)
    path = write_files(request.param, tmp_path)
    size = 28 if request.param == "digits" else 8
    return ImageSettings(source=request.param, path=path and str(path), size=size, channels=3)


def test_a_source_is_prepared_with_its_labels_and_groups(source, tmp_path):
    check(source, tmp_path / "out", tmp_path / "raw")
    *arrays, manifest = prepare(source, tmp_path / "out", tmp_path / "raw")
    counts = {split: len(array) for split, array in zip(SPLITS, arrays, strict=True)}
    assert min(counts.values()) > 0
    assert manifest["counts"] == counts
    for name in ("labels", "groups"):
        values = read_sidecar(tmp_path / "out", name)
        assert not values or {split: len(each) for split, each in values.items()} == counts


def test_the_split_depends_on_the_seed(source, tmp_path):
    tests = []
    for seed in (0, 0, 1):
        folder = tmp_path / f"out {len(tests)}"
        chosen = source.model_copy(update={"seed": seed})
        tests.append(np.array(prepare(chosen, folder, tmp_path)[2].x))
    assert np.array_equal(tests[0], tests[1])
    assert not np.array_equal(tests[0], tests[2])


def test_an_official_split_covers_all_images(source, tmp_path):
    if not SOURCES[source.source].official_split:
        pytest.skip("this source has no official split")
    opened = source.model_copy(update={"split": "official"}).open(tmp_path)
    assert set(opened.splits) == set(opened.names)
    assert set(opened.splits.values()) == set(SPLITS)
    opened.close()


def test_the_files_of_a_source_identify_it(source, tmp_path):
    first = source.fingerprint(tmp_path)
    assert source.fingerprint(tmp_path) == first
    if source.path is None:
        return
    copy = tmp_path / "copy" / Path(source.path).name
    copy.parent.mkdir()
    (shutil.copy2 if Path(source.path).is_file() else shutil.copytree)(source.path, copy)
    moved = source.model_copy(update={"path": str(copy)})
    assert moved.fingerprint(tmp_path) == first
    file = min(file for file in [copy, *copy.rglob("*")] if file.is_file())
    os.utime(file, (1, 1))
    touched = moved.fingerprint(tmp_path)
    assert (touched != first) == (source.source in ("folder", "lsun_bedroom"))
    marks = {touched}
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for change in (lambda: file.write_bytes(content), lambda: os.truncate(file, 1), file.unlink):
        change()
        marks.add(moved.fingerprint(tmp_path))
    assert len(marks) == 4


def test_groups_are_part_of_the_identity(tmp_path):
    write_folder(tmp_path / "in", {"a.png": b"x"})
    lists = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for each in lists:
        each.write_text("a.png 1\n")
    settings = [
        ImageSettings(source="folder", path=str(tmp_path / "in"), groups=groups)
        for groups in (None, "folder", *map(str, lists))
    ]
    assert len({each.fingerprint(tmp_path) for each in settings}) == 4


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    write_folder(tmp_path / "in", {"deep/a.png": b"x"})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    settings = ImageSettings(source="folder", path=str(tmp_path / "in"))
    for function in (settings.fingerprint, settings.open):
        with pytest.raises(UserError, match=r"^path=.*in: expected .*Permission denied.*deep"):
            function(tmp_path)
