"""Labelled data sets: torchvision's and MedMNIST's."""

import numpy as np
import pytest
from source_files import SIDE, write_idx, write_medmnist

from sidecars import read_sidecar
from submanifold.common.errors import UserError
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.data.splits import SPLITS


@pytest.fixture
def files(tmp_path):
    return write_idx(tmp_path / "in", packed=True)


def settings(path, source="mnist", **more):
    defaults = {"size": SIDE, "channels": 1, "split": "official"}
    return ImageSettings(source=source, path=path and str(path), **{**defaults, **more})


def run(tmp_path, chosen):
    *arrays, manifest = prepare(chosen, tmp_path / "out", tmp_path / "raw")
    return *(events.x for events in arrays), read_sidecar(tmp_path / "out", "labels"), manifest


@pytest.mark.parametrize(("split", "sizes"), [("official", [54, 6, 20]), ("random", [64, 8, 8])])
def test_labels_belong_to_their_images(tmp_path, files, split, sizes):
    *arrays, labels, manifest = run(tmp_path, settings(files, split=split))
    assert [len(array) for array in arrays] == sizes
    for name, array in zip(SPLITS, arrays, strict=True):
        assert array[:, 0, 0, 0].tolist() == labels[name]
    assert manifest["split"] == split
    if split == "official":
        both = sorted(np.concatenate(arrays[:2])[:, 0, 0, 1].tolist())
        assert both == list(range(60))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({"labels": [3, 4]}, {3, 4}), ({"other_labels": [3, 4]}, {0, 1, 2, 5, 6, 7, 8, 9})],
)
def test_images_are_selected_by_label(tmp_path, files, chosen, expected):
    train, _, test, labels, _ = run(tmp_path, settings(files, **chosen))
    assert set(labels["train"] + labels["test"]) == expected
    assert set(train[:, 0, 0, 0]) | set(test[:, 0, 0, 0]) == expected


def test_several_labels_of_an_image_are_kept(tmp_path):
    path = write_medmnist(tmp_path / "x.npz", [[0, 1], [1, 1], [1, 0]])
    labels = run(tmp_path, settings(path, "medmnist"))[3]
    assert sorted(labels["train"]) == [[0, 1], [1, 0], [1, 1]]
    with pytest.raises(
        UserError, match=r"^labels: expected none, because images have several labels"
    ):
        settings(path, "medmnist", labels=[1]).open(tmp_path)


def truncate(folder):
    file = folder / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "t10k-labels-idx1-ubyte.gz").unlink(), "error: .*No such file"),
        (truncate, "expected a folder of torchvision's MNIST"),
    ],
)
def test_damaged_files_are_rejected(tmp_path, files, damage, message):
    damage(files)
    with pytest.raises(UserError, match=message):
        settings(files).open(tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": [77]}, r"^labels: expected some of the labels \[0, 1, .*\], got \[77\]"),
        ({"other_labels": range(10)}, r"^other_labels: expected some of the labels"),
        (
            {"counts": {"valid": 60}},
            r"^split: expected train images in the official split, got none",
        ),
    ],
)
def test_selections_that_leave_no_images_are_rejected(tmp_path, files, more, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, settings(files, **more))


def test_the_validation_split_depends_on_the_seed(tmp_path, files):
    def validation(seed):
        valid = run(tmp_path / f"{seed}", settings(files, seed=seed))[1]
        return set(valid[:, 0, 0, 1].tolist())

    first = validation(0)
    assert first != validation(1)
    assert len(first) == 6
