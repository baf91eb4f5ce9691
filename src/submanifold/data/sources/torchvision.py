"""Data sets of torchvision, in its layout or as a folder of their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.labelled import (
    Labelled,
    fingerprint_unpacked,
    open_labelled,
    open_unpacked,
)

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

FILES = {"CIFAR10": ["cifar-10-batches-py"], "SVHN": ["train_32x32.mat", "test_32x32.mat"]}
IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k")
             for kind in ("images-idx3", "labels-idx1")]  # fmt: skip


def torchvision_source(name: str) -> SourceType:
    """A data set by the name of torchvision's class, which downloads it if no path is given."""

    def open_source(settings: ImageSettings, raw_folder: Path) -> Source:
        root = Path(settings.path or raw_folder / "torchvision").expanduser()
        if settings.path is None:
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
        if not root.exists():
            return f"missing:{root.absolute()}"
        try:
            return fingerprint_unpacked(_files(name, root))
        except OSError as error:
            raise _unreadable(name, root, error) from error

    return SourceType(
        open=open_source,
        fingerprint=fingerprint,
        must_download=lambda settings, raw_folder: settings.path is None,
        path=f"a folder of torchvision's {name}",
        labels=True,
        official_split=True,
    )


def _unreadable(name: str, root: Path, error: Exception) -> UserError:
    return UserError(
        f"path={root}: expected the files of {name}, or torchvision's root folder, got {error}. "
        "Correct it (and fetch broken files again), or omit path to download them."
    )


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    try:
        with locked(root, f"the download of {name}"):
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
    """The files of a data set.

    Raises:
        FileNotFoundError: If one does not exist.
    """
    folders = (root,) if name in FILES else (root, root / "raw", root / name / "raw")
    found = []
    for file in FILES.get(name, IDX_FILES):
        places = (folder / f"{file}{suffix}" for folder in folders for suffix in ("", ".gz"))
        place = next((each for each in places if each.exists()), None)
        if place is None:
            raise FileNotFoundError(f"no {file}")
        found += sorted(place.glob("*")) if place.is_dir() else [place]
    return found


def _read_idx(name: str, root: Path) -> dict[str, Labelled]:
    """Read MNIST's format, which torchvision reads from its own layout and unpacked only."""

    def read(file: Path) -> np.ndarray:
        with open_unpacked(file) as stream:
            content = stream.read()
        axes = content[3] if content[:3] == b"\0\0\x08" else 0
        if axes not in (1, 3):
            raise ValueError(f"{file.name}, which is not an IDX file of bytes")
        shape = np.frombuffer(content, ">i4", axes, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)

    arrays = [read(file) for file in _files(name, root)]
    return {"train": Labelled(arrays[0], arrays[1].astype(np.int64)),
            "test": Labelled(arrays[2], arrays[3].astype(np.int64))}  # fmt: skip
