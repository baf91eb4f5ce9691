"""Labelled data sets with official splits: those of torchvision, and MedMNIST's npz files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.data.images import crop_and_resize, read_file
from submanifold.data.sources.base import Source, SourceType

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

FILES = {"CIFAR10": ["cifar-10-batches-py"], "SVHN": ["train_32x32.mat", "test_32x32.mat"]}
IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k")
             for kind in ("images-idx3", "labels-idx1")]  # fmt: skip

Labelled = dict[str, tuple[np.ndarray, np.ndarray]]
"""By split: images, uint8 (N, height, width) or (N, height, width, 3), and labels (N, ...)."""


def open_labelled(settings: ImageSettings, data: Labelled) -> Source:
    """Make a source of official splits; without a validation split it is taken from train."""
    data = _select_labels(settings, data)
    splits, labels = dict[str, str](), dict[str, object]()
    for split, (images, of_images) in data.items():
        names = [f"{split}/{n:06d}" for n in range(len(images))]
        splits |= dict.fromkeys(names, split)
        labels |= dict(zip(names, of_images.tolist(), strict=True))
    if "valid" not in data:
        train = len(data["train"][0])
        valid = settings.counts.valid or max(1, train // 10)
        order = np.random.default_rng(settings.seed).permutation(train)
        splits |= {f"train/{n:06d}": "valid" for n in order[:valid]}

    def image(name: str) -> np.ndarray:
        split, number = name.split("/")
        return crop_and_resize(data[split][0][int(number)], **settings.form)

    is_official = settings.split == "official"
    return Source(sorted(splits), image, splits if is_official else None, settings.split,
                  labels=labels)  # fmt: skip


def _select_labels(settings: ImageSettings, data: Labelled) -> Labelled:
    setting = "labels" if settings.labels else "other_labels"
    chosen = settings.labels or settings.other_labels
    if chosen is None:
        return data
    if any(labels.ndim > 1 for _, labels in data.values()):
        raise UserError(f"{setting}: expected none, because images have several labels. Omit it.")
    existing = {int(label) for _, labels in data.values() for label in np.unique(labels)}
    if not set(chosen) <= existing or (settings.labels is None and set(chosen) == existing):
        raise UserError(
            f"{setting}: expected some of the labels {sorted(existing)}, got {list(chosen)}."
        )
    kept = {split: np.isin(labels, chosen, invert=settings.labels is None)
            for split, (_, labels) in data.items()}  # fmt: skip
    return {s: (images[kept[s]], labels[kept[s]]) for s, (images, labels) in data.items()}


def torchvision_source(name: str) -> SourceType:
    """A data set by the name of torchvision's class, which downloads it if no path is given.

    A path is a folder of its files, or torchvision's root folder.
    """

    def open_source(settings: ImageSettings, raw_folder: Path) -> Source:
        try:
            if settings.path is None:
                folder = raw_folder / "torchvision"
                with locked(folder, f"the download of {name}"):
                    data = _load(name, folder, download=True)
            elif name in FILES:
                data = _load(name, settings.file)
            else:
                images, labels, *test = map(_read_idx, _files(name, settings.file))
                data = {"train": (images, labels), "test": (test[0], test[1])}
        except Exception as error:  # each download and each broken file raises other errors
            place = f"at path={settings.path}" if settings.path else "by torchvision's download"
            raise UserError(
                f"source={settings.source}: expected the files of {name} {place}, got an error: "
                f"{' '.join(str(error).split())}. Fetch them again, or by hand, and set path to "
                "their folder."
            ) from error
        return open_labelled(settings, data)

    return SourceType(
        open=open_source,
        files=lambda settings, raw_folder: _files(name, settings.file) if settings.path else None,
        path=f"a folder of torchvision's {name}",
        labels=True,
        official_split=True,
    )


def _files(name: str, root: Path) -> list[Path]:
    """The files of a data set, packed or not, whether they exist or not."""
    folders = (root,) if name in FILES else (root, root / "raw", root / name / "raw")
    files = []
    for file in FILES.get(name, IDX_FILES):
        places = [folder / f"{file}{suffix}" for folder in folders for suffix in ("", ".gz")]
        place = next((place for place in places if place.exists()), places[0])
        files += sorted(place.glob("*")) if place.is_dir() else [place]
    return files


def _read_idx(path: Path) -> np.ndarray:
    """Read a file of MNIST: two zeros, the type, the number of dimensions, their sizes, bytes."""
    content = gzip.decompress(read_file(path)) if path.suffix == ".gz" else read_file(path)
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)


def _load(name: str, root: Path, download: bool = False) -> Labelled:
    from torchvision import datasets

    data = {}
    for split in ("train", "test"):
        part = {"split": split} if name == "SVHN" else {"train": split == "train"}
        dataset = getattr(datasets, name)(root, download=download, **part)
        images = dataset.data.transpose(0, 2, 3, 1) if name == "SVHN" else np.array(dataset.data)
        data[split] = images, np.array(dataset.labels if name == "SVHN" else dataset.targets)
    return data


def _open_medmnist(settings: ImageSettings, raw_folder: Path) -> Source:
    data = {}
    try:
        with np.load(settings.file) as arrays:
            for split, name in {"train": "train", "valid": "val", "test": "test"}.items():
                images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
                if images.dtype != np.uint8 or images.shape[3:] not in ((), (3,)):
                    raise ValueError(f"{images.dtype} images of shape {images.shape}")
                data[split] = images, labels[:, 0] if labels.shape[1:] == (1,) else labels
    except Exception as error:  # a broken file raises many kinds of errors
        raise UserError(
            f"path={settings.path}: expected an npz file of MedMNIST with grey or RGB images, got "
            f"{error}. Correct it, or fetch it again."
        ) from error
    return open_labelled(settings, data)


MEDMNIST = SourceType(
    open=_open_medmnist,
    path="an npz file of MedMNIST",
    path_required=True,
    labels=True,
    official_split=True,
)
