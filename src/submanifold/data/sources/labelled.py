"""Labelled data sets with official splits: those of torchvision, and MedMNIST's npz files."""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError, unexpected
from submanifold.common.files import locked
from submanifold.data.fields import ImageFields
from submanifold.data.images import crop_and_resize
from submanifold.data.sources.base import Source, SourceType

TORCHVISION_FILES = {
    "CIFAR10": ["cifar-10-batches-py"],
    "SVHN": ["train_32x32.mat", "test_32x32.mat"],
}
IDX_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]

Labelled = dict[str, tuple[np.ndarray, np.ndarray]]
"""By split: images, uint8 (N, height, width) or (N, height, width, 3), and labels (N, ...)."""


def open_labelled(settings: ImageFields, data: Labelled) -> Source:
    """Make a source of official splits; without a validation split it is taken from train."""
    data = _select_labels(settings, data)
    splits, labels = dict[str, str](), dict[str, object]()
    for split, (images, of_images) in data.items():
        names = [f"{split}/{n:06d}" for n in range(len(images))]
        splits |= dict.fromkeys(names, split)
        labels |= zip(names, of_images.tolist(), strict=True)
    if "valid" not in data:
        train = len(data["train"][0])
        valid = settings.counts.valid or max(1, train // 10)
        order = np.random.default_rng(settings.seed).permutation(train)
        splits |= {f"train/{n:06d}": "valid" for n in order[:valid]}

    def image(name: str) -> np.ndarray:
        split, number = name.split("/")
        return crop_and_resize(data[split][0][int(number)], **settings.form)

    official = splits if settings.split == "official" else None
    return Source(sorted(splits), image, official, settings.split, labels=labels)


def _select_labels(settings: ImageFields, data: Labelled) -> Labelled:
    setting = "labels" if settings.labels else "other_labels"
    if (chosen := getattr(settings, setting)) is None:
        return data
    if any(labels.ndim > 1 for _, labels in data.values()):
        raise UserError(f"{setting}: expected none, because images have several labels. Omit it.")
    existing = {int(label) for _, labels in data.values() for label in np.unique(labels)}
    if not set(chosen) <= existing or (setting == "other_labels" and set(chosen) == existing):
        raise unexpected(setting, f"some of the labels {sorted(existing)}", list(chosen))
    selected = {}
    for split, (images, labels) in data.items():
        is_chosen = np.isin(labels, chosen, invert=setting == "other_labels")
        selected[split] = images[is_chosen], labels[is_chosen]
    return selected


def labelled_source(
    read: Callable[[ImageFields, Path], Labelled], path: str, **more: Any
) -> SourceType:
    """A source of labelled images that a function reads from files at a path, or downloads."""

    def open_source(settings: ImageFields, raw_folder: Path) -> Source:
        try:
            data = read(settings, raw_folder)
        except Exception as error:  # each download and each broken file raises other errors
            place = f"at path={settings.path}" if settings.path else "by torchvision's download"
            got = f"an error: {' '.join(str(error).split())}"
            fix = "Fetch it again, or by hand, and set data.path to it"
            raise unexpected(f"source={settings.source}", f"{path} {place}", got, fix) from error
        return open_labelled(settings, data)

    return SourceType(open_source, path=path, labels=True, official_split=True, **more)


def torchvision_source(name: str) -> SourceType:
    """A data set by the name of torchvision's class, which downloads it if no path is given.

    A path is a folder of its files, or torchvision's root folder.
    """

    def read(settings: ImageFields, raw_folder: Path) -> Labelled:
        if settings.path is None:
            folder = raw_folder / "torchvision"
            with locked(folder, f"the download of {name}"):
                return _load(name, folder, download=True)
        if name in TORCHVISION_FILES:
            return _load(name, settings.file)
        images, labels, test_images, test_labels = map(_read_idx, _files(name, settings.file))
        return {"train": (images, labels), "test": (test_images, test_labels)}

    def files(settings: ImageFields, raw_folder: Path) -> list[Path] | None:
        return _files(name, settings.file) if settings.path else None

    return labelled_source(read, f"a folder of torchvision's {name}", files=files)


def _files(name: str, root: Path) -> list[Path]:
    folders = (root,) if name in TORCHVISION_FILES else (root, root / "raw", root / name / "raw")
    files = []
    for file in TORCHVISION_FILES.get(name, IDX_FILES):
        places = [folder / f"{file}{suffix}" for folder in folders for suffix in ("", ".gz")]
        place = next(filter(Path.exists, places), places[0])
        files += sorted(place.glob("*")) if place.is_dir() else [place]
    return files


def _read_idx(path: Path) -> np.ndarray:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    if path.suffix == ".gz":
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder, path.stem)
            unpacked.write_bytes(gzip.decompress(path.read_bytes()))
            return _read_idx(unpacked)
    array: np.ndarray = read_sn3_pascalvincent_tensor(str(path)).numpy()
    return array


def _load(name: str, root: Path, download: bool = False) -> Labelled:
    from torchvision import datasets

    data = {}
    for split in ("train", "test"):
        part = {"split": split} if name == "SVHN" else {"train": split == "train"}
        dataset = getattr(datasets, name)(root, download=download, **part)
        images = dataset.data.transpose(0, 2, 3, 1) if name == "SVHN" else np.array(dataset.data)
        data[split] = images, np.array(dataset.labels if name == "SVHN" else dataset.targets)
    return data


def _read_medmnist(settings: ImageFields, raw_folder: Path) -> Labelled:
    data = {}
    with np.load(settings.file) as arrays:
        for split, name in {"train": "train", "valid": "val", "test": "test"}.items():
            images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
            if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,)):
                raise ValueError(f"{images.dtype} images of shape {images.shape}")
            data[split] = images, labels[:, 0] if labels.shape[1:] == (1,) else labels
    return data


MEDMNIST = labelled_source(_read_medmnist, "an npz file of MedMNIST", path_required=True)
