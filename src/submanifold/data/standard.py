"""Standard data sets by name, in torchvision's layout, and MedMNIST's files; with their labels."""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.data.stores import PACKED_BY

log = logging.getLogger(__name__)

TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "svhn": "SVHN",
}
"""The class of torchvision that knows where each is downloaded, its checksums and its folders."""

IDX = ("mnist", "fashion_mnist", "kmnist")
IDX_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
FILES = {
    "cifar10": ("cifar-10-batches-py",),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
}


MOST_UNPACKED = 100
"""Times its own size to which a file may unpack: these images do to less than 20 times."""


class Labelled(NamedTuple):
    """Images of one official part, and what they show.

    Attributes:
        images: uint8 (N, height, width), or (N, height, width, 3).
        labels: integers (N,), or (N, several).
    """

    images: np.ndarray
    labels: np.ndarray


def read_standard(source: str, path: str | None, raw_folder: Path) -> dict[str, Labelled]:
    """Read a data set's official parts: train and test, and with MedMNIST valid.

    Args:
        source: A name of :data:`TORCHVISION`, or ``medmnist``.
        path: A folder in torchvision's layout or of the files themselves; MedMNIST's npz. None is
            the raw folder, into which torchvision downloads what is missing.
        raw_folder: Holds downloads.

    Raises:
        UserError: If there is nothing to read, or something else.
    """
    if source == "medmnist":
        return _medmnist(Path(str(path)).expanduser())
    root = Path(path).expanduser() if path else raw_folder / "torchvision"
    if path and not root.is_dir():
        raise UserError(
            f"path={path} is no folder (looked from {Path.cwd()}); give the folder that holds the "
            f"files of {source}, or leave path out to download them"
        )
    if not path:
        with locked(root, f"the download of {source}"):
            _download(source, root)
    try:
        return _read_idx(source, root) if source in IDX else _of_torchvision(source, root)
    except FileNotFoundError as error:
        raise UserError(
            f"path={path or root} does not hold {source}: {error}; give torchvision's root folder, "
            "or the folder of the files themselves, or leave path out to download them"
        ) from error
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise UserError(
            f"path={path or root} cannot be read as {source} ({error}); fetch its files again"
        ) from error


def fingerprint_standard(source: str, path: str | None) -> str:
    """The identity of a data set's files; what torchvision downloads is known by its name.

    Raises:
        OSError: If they cannot be read.
    """
    if path is None:
        return f"torchvision:{TORCHVISION[source]}"
    place = Path(path).expanduser()
    if not place.exists():
        return f"missing:{place.absolute()}"
    if source == "medmnist":
        files = [place]
    elif source in IDX:
        files = [_idx_file(source, place, part, kind) for part, kind in IDX_FILES]
    else:
        found = [place / name for name in FILES[source]]
        files = sorted(
            file for each in found for file in (each.glob("*") if each.is_dir() else [each])
        )
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, *_ in files:
        if not file.is_file():  # who reads a pipe may wait for ever
            raise OSError(f"{file} is not a file")
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return f"files:{digest.hexdigest()[:32]}"


def _download(source: str, root: Path) -> None:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[source])
    try:
        for part in ({"split": "train"}, {"split": "test"}) if source == "svhn" else ({},):
            kind(root, download=True, **part)
    except Exception as error:  # each transport has its own kinds
        raise UserError(
            f"source={source}: torchvision could not download it ({error}). Fetch its files by "
            "hand and give their folder as path"
        ) from error


def _read_idx(source: str, root: Path) -> dict[str, Labelled]:
    def read(part: str, kind: str) -> np.ndarray:
        file = _idx_file(source, root, part, kind)
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            zero, code, axes = stream.read(2), stream.read(1), stream.read(1)
            if zero != b"\0\0" or code != b"\x08" or axes not in (b"\x01", b"\x03"):
                raise ValueError(f"{file.name} is no IDX file of bytes")
            shape = np.frombuffer(stream.read(4 * axes[0]), ">i4")
            size = math.prod(shape.tolist())
            _refuse_bomb(file, size)
            return np.frombuffer(stream.read(size), np.uint8).reshape(shape)

    return {part: Labelled(read(part, "images"), read(part, "labels").astype(np.int64))
            for part in ("train", "test")}  # fmt: skip


def _idx_file(source: str, root: Path, part: str, kind: str) -> Path:
    name = IDX_FILES[part, kind]
    folders = (root, root / "raw", root / TORCHVISION[source] / "raw")
    candidates = [folder / f"{name}{ending}" for folder in folders for ending in ("", ".gz")]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no {name} or {name}.gz in it")
    return found


def _of_torchvision(source: str, root: Path) -> dict[str, Labelled]:
    from torchvision import datasets

    # Both check the files against checksums before they read them, in a folder that is given too:
    # no other pickle than CIFAR-10's own is loaded.
    if missing := [name for name in FILES[source] if not (root / name).exists()]:
        raise FileNotFoundError(f"no {missing[0]} in it")
    if source == "svhn":
        each = {part: datasets.SVHN(root, split=part) for part in ("train", "test")}
        return {part: Labelled(found.data.transpose(0, 2, 3, 1), np.asarray(found.labels))
                for part, found in each.items()}  # fmt: skip
    parts = {part: datasets.CIFAR10(root, train=part == "train") for part in ("train", "test")}
    return {part: Labelled(found.data, np.asarray(found.targets)) for part, found in parts.items()}


def _medmnist(path: Path) -> dict[str, Labelled]:
    """Read an npz file as MedMNIST ships it; nothing pickled in it is loaded."""
    if not path.is_file():
        raise UserError(
            f"path={path} is no file (looked from {Path.cwd()}); give one of MedMNIST's npz files"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(each.compress_type not in PACKED_BY for each in members):
            raise ValueError("it is not packed by deflate")
        _refuse_bomb(path, sum(each.file_size for each in members))
        with np.load(path, allow_pickle=False) as arrays:
            parts = {
                part: Labelled(arrays[f"{name}_images"], arrays[f"{name}_labels"])
                for part, name in (("train", "train"), ("valid", "val"), ("test", "test"))
            }
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(
            f"path={path} is none of MedMNIST's files ({error}): it should hold train_images, "
            "train_labels, and the same of val and test"
        ) from error
    for images, _ in parts.values():
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or images.shape[3:] not in ((), (3,))
        ):
            raise UserError(
                f"path={path} holds images of shape {images.shape} and type {images.dtype}; those "
                "of two dimensions can be used, grey or RGB, as bytes"
            )
    return {part: Labelled(images, labels[:, 0] if labels.shape[1:] == (1,) else labels)
            for part, (images, labels) in parts.items()}  # fmt: skip


def _refuse_bomb(file: Path, size: int) -> None:
    """Raise a ValueError before a small file fills the memory."""
    own = file.stat().st_size
    if not 0 <= size <= MOST_UNPACKED * own:
        raise ValueError(
            f"{file.name} would unpack to {size} bytes, more than {MOST_UNPACKED} times its {own}"
        )


def chosen(
    parts: dict[str, Labelled],
    labels: tuple[int, ...] | None,
    others_than: tuple[int, ...] | None = None,
) -> dict[str, Labelled]:
    """Keep the images that have one of the labels, or none of others; all of them if None.

    Raises:
        UserError: If no image has one of the labels, an image has several, or none is left.
    """
    if labels is None and others_than is None:
        return parts
    named = labels or others_than or ()
    if any(each.labels.ndim > 1 for each in parts.values()):
        raise UserError(f"labels={list(named)}, but each image has several here; leave labels out")
    there = {int(label) for each in parts.values() for label in np.unique(each.labels)}
    if unknown := set(named) - there:
        raise UserError(
            f"labels={list(named)}, but no image has {sorted(unknown)}; there are {sorted(there)}"
        )
    if others_than and not there - set(others_than):
        raise UserError(f"labels={list(named)} are all that there are, and no image has others")
    kept = {part: np.isin(each.labels, named, invert=labels is None)
            for part, each in parts.items()}  # fmt: skip
    return {part: Labelled(each.images[kept[part]], each.labels[kept[part]])
            for part, each in parts.items()}  # fmt: skip
