"""Data sets of torchvision, in its layout or as a folder of their files."""

from __future__ import annotations

import gzip
import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.labelled import Labelled, check_unpacked_size, open_labelled

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FILES = {
    "CIFAR10": ("cifar-10-batches-py",),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}
"""Files of the classes that are not in IDX format, which torchvision verifies before reading."""


def torchvision_source(name: str) -> SourceType:
    """A data set by the name of torchvision's class, which downloads it if no path is given."""

    def open_source(settings: ImageSettings, raw_folder: Path) -> Source:
        root = Path(settings.path or raw_folder / "torchvision").expanduser()
        if settings.path is None:
            with locked(root, f"the download of {name}"):
                _download(name, root)
        try:
            data = _load(name, root) if name in FILES else _read_idx(name, root)
        except (OSError, EOFError, ValueError, RuntimeError) as error:
            raise _unreadable(name, root, error) from error
        return open_labelled(settings, data)

    def fingerprint(settings: ImageSettings, raw_folder: Path) -> str:
        if settings.path is None:
            return f"torchvision:{name}"
        root = Path(settings.path).expanduser()
        try:
            return fingerprint_files(_files(name, root)) if root.exists() else missing(root)
        except OSError as error:
            raise _unreadable(name, root, error) from error

    return SourceType(
        open=open_source,
        fingerprint=fingerprint,
        must_download=lambda settings, raw_folder: settings.path is None,
        path=f"a folder of torchvision's {name}",
        labels=True,
        official_split=True,
        crops=(False, True),
    )


def _unreadable(name: str, root: Path, error: Exception) -> UserError:
    return UserError(
        f"path={root}: expected the files of {name}, or torchvision's root folder, got {error}. "
        "Correct it (and fetch broken files again), or omit path to download them."
    )


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    try:
        for split in ({"split": "train"}, {"split": "test"}) if name == "SVHN" else ({},):
            getattr(datasets, name)(root, download=True, **split)
    except Exception as error:  # each kind of download raises other errors
        raise UserError(
            f"source={name}: expected a download by torchvision, got {error}. Download its files "
            "by hand and set path to their folder."
        ) from error


def _load(name: str, root: Path) -> dict[str, Labelled]:
    """Let torchvision load the files; it verifies their MD5 first, and only then unpickles them."""
    from torchvision import datasets

    _files(name, root)
    data: dict[str, Any]
    if name == "SVHN":
        data = {split: datasets.SVHN(root, split=split) for split in ("train", "test")}
        return {split: Labelled(each.data.transpose(0, 2, 3, 1), np.asarray(each.labels))
                for split, each in data.items()}  # fmt: skip
    data = {split: datasets.CIFAR10(root, train=split == "train") for split in ("train", "test")}
    return {split: Labelled(each.data, np.asarray(each.targets)) for split, each in data.items()}


def _files(name: str, root: Path) -> list[Path]:
    """The files that hold a data set."""
    if name not in FILES:
        return [_idx_file(name, root, file) for files in IDX_FILES.values() for file in files]
    found = [root / file for file in FILES[name]]
    if absent := [file for file in found if not file.exists()]:
        raise FileNotFoundError(f"no {absent[0].name}")
    return sorted(file for each in found for file in (each.glob("*") if each.is_dir() else [each]))


def _idx_file(name: str, root: Path, file: str) -> Path:
    folders = (root, root / "raw", root / name / "raw")
    candidates = [folder / f"{file}{suffix}" for folder in folders for suffix in ("", ".gz")]
    found = next((each for each in candidates if each.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no {file} or {file}.gz")
    return found


def _read_idx(name: str, root: Path) -> dict[str, Labelled]:
    """Read MNIST's format, also packed and in bounded memory, unlike torchvision's reader."""

    def read(file: Path) -> np.ndarray:
        with _open(file) as stream:
            start = stream.read(4)
            if start[:3] != b"\0\0\x08" or start[3:] not in (b"\x01", b"\x03"):
                raise ValueError(f"{file.name}, which is not an IDX file of bytes")
            shape = np.frombuffer(stream.read(4 * start[3]), ">i4")
            size = math.prod(shape.tolist())
            check_unpacked_size(file, size)
            return np.frombuffer(stream.read(size), np.uint8).reshape(shape)

    arrays = [read(file) for file in _files(name, root)]
    return {"train": Labelled(arrays[0], arrays[1].astype(np.int64)),
            "test": Labelled(arrays[2], arrays[3].astype(np.int64))}  # fmt: skip


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else open(file, "rb")


def missing(path: Path) -> str:
    """Fingerprint of a path that does not exist."""
    return f"missing:{path.absolute()}"


def fingerprint_files(files: list[Path]) -> str:
    """Hash of the unpacked content of files; cached until their sizes or times change.

    Raises:
        OSError: If one cannot be read, or is not a regular file.
    """
    stats = [(file, file.stat()) for file in files]
    return _digest(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, *_ in files:
        if not file.is_file():  # reading a pipe may block
            raise OSError(f"{file}, which is not a file")
        with _open(file) as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return f"files:{digest.hexdigest()[:32]}"
