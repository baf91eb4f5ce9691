"""Labelled data sets with official splits: those of torchvision, and MedMNIST's npz files."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.data.images import crop_and_resize
from submanifold.data.sources.base import Source, SourceType

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

FILES = {"CIFAR10": ["cifar-10-batches-py"], "SVHN": ["train_32x32.mat", "test_32x32.mat"]}
IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k")
             for kind in ("images-idx3", "labels-idx1")]  # fmt: skip


class Labelled(NamedTuple):
    """One official split.

    Attributes:
        images: uint8 (N, height, width), or (N, height, width, 3).
        labels: integers (N,), or (N, several).
    """

    images: np.ndarray
    labels: np.ndarray


def open_labelled(settings: ImageSettings, data: dict[str, Labelled]) -> Source:
    """Make a source of official splits; without a validation split it is taken from train."""
    data = _select_labels(settings, data)
    items = {f"{split}/{n:06d}": (split, n) for split, each in data.items()
             for n in range(len(each.images))}  # fmt: skip
    labels = [label for each in data.values() for label in each.labels.tolist()]
    splits = {name: split for name, (split, _) in items.items()}
    if "valid" not in data:
        train = [name for name, split in splits.items() if split == "train"]
        valid = settings.counts.valid or max(1, len(train) // 10)
        if valid >= len(train) and settings.split == "official":
            raise UserError(
                f"counts.valid: expected less than the {len(train)} training images, which include "
                f"the validation images, got {valid}. Decrease it."
            )
        order = np.random.default_rng(settings.seed).permutation(len(train))
        splits |= {train[n]: "valid" for n in order[:valid].tolist()}

    def read(name: str) -> np.ndarray:
        split, number = items[name]
        return data[split].images[number]

    return Source(
        names=sorted(items),
        read=read,
        decode=partial(crop_and_resize, **settings.form),
        splits=splits if settings.split == "official" else None,
        split_rule=settings.split,
        crop=settings.crop_rule,
        labels=dict(zip(items, labels, strict=True)),
    )


def _select_labels(settings: ImageSettings, data: dict[str, Labelled]) -> dict[str, Labelled]:
    setting = "labels" if settings.labels else "other_labels"
    chosen = settings.labels or settings.other_labels
    if chosen is None:
        return data
    if any(each.labels.ndim > 1 for each in data.values()):
        raise UserError(
            f"{setting}: expected none for images with several labels, got {list(chosen)}. Omit it."
        )
    existing = {int(label) for each in data.values() for label in np.unique(each.labels)}
    if not set(chosen) <= existing or (settings.labels is None and set(chosen) == existing):
        raise UserError(
            f"{setting}: expected some of the labels {sorted(existing)}, got {list(chosen)}. "
            "Correct it."
        )
    selected = {}
    for split, (images, labels) in data.items():
        kept = np.isin(labels, chosen, invert=settings.labels is None)
        selected[split] = Labelled(images[kept], labels[kept])
    return selected


def _fingerprint(path: Path, find: Callable[[Path], list[Path]], expected: str) -> str:
    """Hash of the unpacked content of files; cached until their sizes or times change."""
    if not path.exists():
        return f"missing:{path.absolute()}"
    try:
        stats = [(file, file.stat()) for file in find(path)]
        return _digest(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))
    except OSError as error:
        raise _unreadable(path, expected, error) from error


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, *_ in files:
        with _open_unpacked(file) as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return f"files:{digest.hexdigest()[:32]}"


def _open_unpacked(file: Path) -> BinaryIO:
    """Open a file, decompressing it if it is a gzip file."""
    if not file.is_file():  # reading a pipe may block
        raise OSError(f"{file}, which is not a file")
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else open(file, "rb")


def _unreadable(path: Path, expected: str, error: Exception) -> UserError:
    return UserError(
        f"path={path}: expected {expected}, got {error}. Correct it, and fetch broken files again."
    )


def torchvision_source(name: str) -> SourceType:
    """A data set by the name of torchvision's class, which downloads it if no path is given.

    A path is a folder of its files, or torchvision's root folder.
    """
    expected = f"the files of {name}, torchvision's root folder, or none to download them"

    def open_source(settings: ImageSettings, raw_folder: Path) -> Source:
        root = Path(settings.path or raw_folder / "torchvision").expanduser()
        if settings.path is None:
            _download(name, root)
        try:
            files = _files(name, root)
            data = (
                {split: _read_split(name, root, split) for split in ("train", "test")}
                if name in FILES
                else _read_idx(files)
            )
        except (OSError, EOFError, ValueError, RuntimeError) as error:
            raise _unreadable(root, expected, error) from error
        return open_labelled(settings, data)

    def fingerprint(settings: ImageSettings, raw_folder: Path) -> str:
        if settings.path is None:
            return f"torchvision:{name}"
        return _fingerprint(Path(settings.path).expanduser(), partial(_files, name), expected)

    return SourceType(
        open=open_source,
        fingerprint=fingerprint,
        must_download=lambda settings, raw_folder: settings.path is None,
        path=f"a folder of torchvision's {name}",
        labels=True,
        official_split=True,
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


def _read_split(name: str, root: Path, split: str) -> Labelled:
    """Let torchvision read CIFAR10 or SVHN; it verifies their MD5 before it unpickles them."""
    from torchvision.datasets import CIFAR10, SVHN

    if name == "SVHN":
        svhn = SVHN(root, split=split)
        return Labelled(svhn.data.transpose(0, 2, 3, 1), np.array(svhn.labels))
    cifar = CIFAR10(root, train=split == "train")
    return Labelled(cifar.data, np.array(cifar.targets))


def _read_idx(files: list[Path]) -> dict[str, Labelled]:
    """Read MNIST's format, which torchvision reads from its own layout and unpacked only."""
    arrays = []
    for file in files:
        with _open_unpacked(file) as stream:
            content = stream.read()
        axes = content[3] if content[:3] == b"\0\0\x08" else 0
        if axes not in (1, 3):
            raise ValueError(f"{file.name}, which is not an IDX file of bytes")
        shape = np.frombuffer(content, ">i4", axes, offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape))
    train, train_labels, test, test_labels = arrays
    return {"train": Labelled(train, train_labels.astype(np.int64)),
            "test": Labelled(test, test_labels.astype(np.int64))}  # fmt: skip


MEDMNIST_FILE = (
    "an npz file of MedMNIST with grey or RGB uint8 train_images, their train_labels, and the same "
    "of val and test"
)


def _open_medmnist(settings: ImageSettings, raw_folder: Path) -> Source:
    path = _path(settings)
    data = {}
    try:
        if not path.is_file():  # reading a pipe may block
            raise ValueError(f"not a file (current folder: {Path.cwd()})")
        with np.load(path, allow_pickle=False) as arrays:
            for split, name in {"train": "train", "valid": "val", "test": "test"}.items():
                images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
                rank, tail = images.ndim, images.shape[3:]
                if images.dtype != np.uint8 or rank not in (3, 4) or tail not in ((), (3,)):
                    raise ValueError(f"{images.dtype} images of shape {images.shape}")
                one = labels.shape[1:] == (1,)
                data[split] = Labelled(images, labels[:, 0] if one else labels)
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise _unreadable(path, MEDMNIST_FILE, error) from error
    return open_labelled(settings, data)


def _path(settings: ImageSettings) -> Path:
    return Path(str(settings.path)).expanduser()


MEDMNIST = SourceType(
    open=_open_medmnist,
    fingerprint=lambda settings, raw_folder: _fingerprint(
        _path(settings), lambda path: [path], MEDMNIST_FILE
    ),
    path="an npz file of MedMNIST",
    path_required=True,
    labels=True,
    official_split=True,
)
