import gzip
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torchvision

from submanifold.common.errors import UserError
from submanifold.data.prepare import prepare, read_labels
from submanifold.data.settings import ImageSettings, read_data_settings
from submanifold.data.sources import fingerprint, open_source

SIDE = 8


def pictures(labels, *tail):
    """Pictures whose first pixel is their label and whose second counts them."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (len(labels), SIDE, SIDE, *tail), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 1] = [
        np.reshape(values, (-1, *[1] * len(tail))) for values in (labels, range(len(labels)))
    ]
    return images


def idx(array):
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, train, test, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, labels in (("train", train), ("t10k", test)):
        labels = np.array(labels, np.uint8)
        for kind, array in (("images-idx3", pictures(labels)), ("labels-idx1", labels)):
            content = gzip.compress(idx(array)) if packed else idx(array)
            (folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}").write_bytes(content)


TRAIN, TEST = [n % 10 for n in range(60)], [n % 10 for n in range(20)]


@pytest.fixture
def files(tmp_path):
    write_idx(tmp_path / "in", TRAIN, TEST, packed=True)
    return tmp_path / "in"


def settings(path, source="mnist", **more):
    defaults = {"size": SIDE, "channels": 1, "split": "official"}
    return ImageSettings(source=source, path=path and str(path), **{**defaults, **more})


def run(tmp_path, chosen):
    *arrays, manifest = prepare(chosen, tmp_path / "out", tmp_path / "raw")
    return *arrays, read_labels(tmp_path / "out"), manifest


def test_labels_stay_with_their_images_in_the_official_split(tmp_path, files):
    train, valid, test, labels, manifest = run(tmp_path, settings(files))
    assert [len(part) for part in (train, valid, test)] == [54, 6, 20]
    for part, array in (("train", train), ("valid", valid), ("test", test)):
        assert array.shape[1:] == (1, SIDE, SIDE)
        assert array[:, 0, 0, 0].tolist() == labels[part]
    both = sorted(np.concatenate([train, valid])[:, 0, 0, 1].tolist())
    assert both == list(range(60))
    assert manifest["split"] == "official"


def test_the_seed_chooses_the_validation_images(tmp_path, files):
    found = [
        set(prepare(settings(files, seed=seed), tmp_path / str(seed), tmp_path)[1][:, 0, 0, 1])
        for seed in (0, 1)
    ]
    assert found[0] != found[1]


def test_a_random_split_pools_all_images(tmp_path, files):
    train, valid, test, labels, _ = run(tmp_path, settings(files, split="random"))
    assert [len(part) for part in (train, valid, test)] == [64, 8, 8]
    assert test[:, 0, 0, 0].tolist() == labels["test"]


def test_a_margin_is_black_and_keeps_the_pixels(tmp_path, files):
    plain = run(tmp_path, settings(files))[0]
    padded = prepare(settings(files, size=SIDE + 4, margin=2), tmp_path / "p", tmp_path)[0]
    np.testing.assert_array_equal(padded[:, :, 2:-2, 2:-2], plain)
    assert padded.sum() == plain.sum()


def test_only_the_wanted_labels_are_used(tmp_path, files):
    train, _, test, labels, _ = run(tmp_path, settings(files, labels=[3, 4]))
    assert set(labels["train"]) == set(labels["test"]) == {3, 4}
    assert set(train[:, 0, 0, 0]) == set(test[:, 0, 0, 0]) == {3, 4}


def test_all_others_than_some_labels_are_used(tmp_path, files):
    *_, labels, _ = run(tmp_path, settings(files, other_labels=[3, 4]))
    assert labels["train"]
    assert not {3, 4} & set(labels["train"] + labels["test"])
    assert settings(files, other_labels=[3]).content != settings(files, labels=[3]).content


def test_a_folder_in_torchvisions_layout_is_the_same_data(tmp_path, files):
    write_idx(tmp_path / "root" / "MNIST" / "raw", TRAIN, TEST)
    packed, plain = (fingerprint(settings(path), tmp_path) for path in (files, tmp_path / "root"))
    assert packed == plain
    write_idx(tmp_path / "root" / "MNIST" / "raw", TRAIN, TEST[::-1])
    assert fingerprint(settings(tmp_path / "root"), tmp_path) != plain


def test_without_a_path_torchvision_downloads_into_the_raw_folder(tmp_path, monkeypatch):
    def download(root, download):
        assert download
        write_idx(root / "FashionMNIST" / "raw", TRAIN, TEST)

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    chosen = settings(None, "fashion_mnist")
    before = fingerprint(chosen, tmp_path / "raw")
    labels = run(tmp_path, chosen)[3]
    assert len(labels["train"]) == 54
    assert fingerprint(chosen, tmp_path / "raw") == before


def test_a_download_that_fails_says_the_way_by_hand(tmp_path, monkeypatch):
    def download(root, download):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "KMNIST", download)
    with pytest.raises(UserError, match=r"could not download it.*give their folder as path"):
        open_source(settings(None, "kmnist"), tmp_path)


class Known:
    """Stands in for torchvision's CIFAR10 and SVHN, whose real files are checked by their MD5."""

    def __init__(self, root, train=True, split=None):
        labels = TRAIN if train and split != "test" else TEST
        images = pictures(np.array(labels), 3)
        self.data = images if split is None else images.transpose(0, 3, 1, 2)
        self.targets = self.labels = labels


@pytest.mark.parametrize(("source", "kind", "file"), [
    ("cifar10", "CIFAR10", "cifar-10-batches-py"), ("svhn", "SVHN", "train_32x32.mat"),
])  # fmt: skip
def test_colour_pictures_of_torchvision(tmp_path, monkeypatch, source, kind, file):
    monkeypatch.setattr(torchvision.datasets, kind, Known)
    root = tmp_path / "in"
    (root / file).mkdir(parents=True)
    (root / "test_32x32.mat").mkdir()
    train, _, _, labels, _ = run(tmp_path, settings(root, source, channels=3))
    assert train.shape == (54, 3, SIDE, SIDE)
    assert train[:, 2, 0, 0].tolist() == labels["train"]


def medmnist(path, train_labels, **more):
    arrays = {}
    for part in ("train", "val", "test"):
        labels = np.array(train_labels)
        arrays[f"{part}_images"] = pictures(labels if labels.ndim == 1 else labels[:, 0])
        arrays[f"{part}_labels"] = labels.reshape(len(labels), -1)
    np.savez(path, **{**arrays, **more})
    return path


def test_medmnist_has_a_validation_split_of_its_own(tmp_path):
    path = medmnist(tmp_path / "x.npz", [0, 1, 1, 0, 1])
    train, valid, test, labels, _ = run(tmp_path, settings(path, "medmnist"))
    assert [len(part) for part in (train, valid, test)] == [5, 5, 5]
    assert valid[:, 0, 0, 0].tolist() == labels["valid"]


def test_images_with_several_labels_keep_them_all(tmp_path):
    path = medmnist(tmp_path / "x.npz", [[0, 1], [1, 1], [1, 0]])
    labels = run(tmp_path, settings(path, "medmnist"))[3]
    assert sorted(labels["train"]) == [[0, 1], [1, 0], [1, 1]]
    with pytest.raises(UserError, match=r"labels=\[1\], but each image has several here"):
        open_source(settings(path, "medmnist", labels=[1]), tmp_path)


def pickled(path):
    with open(path, "wb") as file:
        np.savez(file, train_images=np.array([{}], dtype=object))


@pytest.mark.parametrize(("write", "message"), [
    (lambda path: None, "is no file"),
    (lambda path: path.write_bytes(b"no zip"), "none of MedMNIST's files"),
    (pickled, "none of MedMNIST's files"),
    (lambda path: np.savez(path, x=1), "none of MedMNIST's files.*train_images"),
    (lambda path: medmnist(path, [0, 1], val_images=np.zeros((2, 4, 4, 4), np.uint8)), "two dim"),
])  # fmt: skip
def test_what_is_no_medmnist_file_is_refused(tmp_path, write, message):
    write(tmp_path / "x.npz")
    with pytest.raises(UserError, match=message):
        open_source(settings(tmp_path / "x.npz", "medmnist"), tmp_path)


def cut(folder):
    file = folder / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-30])


def swap(folder):
    file = folder / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(io.BytesIO(b"something else").getvalue()))


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda folder: (folder / "t10k-labels-idx1-ubyte.gz").unlink(), "does not hold mnist.*labels"),
    (cut, "cannot be read as mnist"),
    (swap, "is no IDX file"),
])  # fmt: skip
def test_files_that_are_not_whole_are_refused(tmp_path, files, spoil, message):
    spoil(files)
    with pytest.raises(UserError, match=message):
        open_source(settings(files), tmp_path)


@pytest.mark.parametrize(("given", "message"), [
    ({"source": "medmnist"}, "medmnist needs path"),
    ({"source": "folder", "path": "x", "labels": [1]}, "folder has no labels"),
    ({"source": "mnist", "crop": "square"}, "is square; leave out crop"),
    ({"source": "mnist", "margin": 16}, "margin=16 leaves nothing of size=32"),
    ({"source": "photos", "margin": 1}, "leave out margin=1"),
    ({"source": "mnist", "url": "http://x"}, "url or hash is given"),
])  # fmt: skip
def test_settings_that_cannot_work_are_named(given, message):
    with pytest.raises(UserError, match=message):
        read_data_settings(given)


def bomb_idx(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(struct.pack(">HBB3i", 0, 8, 3, 1000, 1000, 100)))


def test_an_idx_file_that_would_fill_the_memory_is_refused(files, tmp_path):
    bomb_idx(files)
    with pytest.raises(UserError, match=r"train-images.* would unpack to 100000000 bytes, more th"):
        open_source(settings(files), tmp_path)


@pytest.mark.parametrize(("method", "message"), [
    (zipfile.ZIP_DEFLATED, "would unpack to 10000128 bytes, more than 100 times its"),
    (zipfile.ZIP_BZIP2, "not packed by deflate"),
])  # fmt: skip
def test_an_npz_that_would_fill_the_memory_is_refused(tmp_path, method, message):
    content = io.BytesIO()
    np.save(content, np.zeros((1000, 100, 100), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("train_images.npy", content.getvalue())
    with pytest.raises(UserError, match=message):
        open_source(settings(tmp_path / "x.npz", "medmnist"), tmp_path)


class Harm:
    """What pickle calls when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_no_pickle_but_cifars_own_is_loaded(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{n}" for n in range(1, 6)]
    for name in [*names, "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(UserError, match=r"cannot be read as cifar10.*fetch its files again"):
        open_source(settings(tmp_path, "cifar10"), tmp_path)
    assert not (tmp_path / "harm").exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("source", ["medmnist", "cifar10"])
def test_a_pipe_among_the_files_is_told(tmp_path, source):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    os.mkfifo(folder / "data_batch_1")
    path = tmp_path if source == "cifar10" else folder / "data_batch_1"
    with pytest.raises(UserError, match="data_batch_1 is not a file"):
        fingerprint(settings(path, source), tmp_path)
    with pytest.raises(UserError):
        open_source(settings(path, source), tmp_path)


def test_labels_that_no_image_has_are_named(tmp_path, files):
    with pytest.raises(UserError, match=r"no image has \[77\]; there are \[0, 1"):
        open_source(settings(files, labels=[77]), tmp_path)


def test_too_many_validation_images_are_refused(tmp_path, files):
    with pytest.raises(UserError, match=r"counts\.valid=60 leaves no training images"):
        open_source(settings(files, counts={"valid": 60}), tmp_path)


def test_new_settings_do_not_change_old_keys():
    content = settings(None).content
    assert not {"margin", "labels", "path"} & content.keys()
    assert settings(None, margin=2).content["margin"] == 2
