"""MedMNIST's npz files, with their official splits."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from submanifold.common.errors import UserError
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.labelled import Labelled, check_unpacked_size, open_labelled
from submanifold.data.sources.stores import PACKED_BY
from submanifold.data.sources.torchvision import fingerprint_files, missing

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

NAMES = {"train": "train", "valid": "val", "test": "test"}


def _open(settings: ImageSettings, raw_folder: Path) -> Source:
    path = _path(settings)
    try:
        data = _read(path)
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(
            f"path={path}: expected an npz file of MedMNIST with train_images (uint8, grey or RGB, "
            f"of two dimensions) and train_labels, and the same of val and test, got: {error}. "
            "Correct it."
        ) from error
    return open_labelled(settings, data)


def _read(path: Path) -> dict[str, Labelled]:
    """Read an npz file in bounded memory and without unpickling."""
    if not path.is_file():
        raise ValueError(f"not a file (current folder: {Path.cwd()})")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(each.compress_type not in PACKED_BY for each in members):
        raise ValueError("not compressed by deflate")
    check_unpacked_size(path, sum(each.file_size for each in members))
    data = {}
    with np.load(path, allow_pickle=False) as arrays:
        for split, name in NAMES.items():
            images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
            colour = images.shape[3:] in ((), (3,))
            if images.dtype != np.uint8 or images.ndim not in (3, 4) or not colour:
                raise ValueError(f"{images.dtype} images of shape {images.shape}")
            labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
            data[split] = Labelled(images, labels)
    return data


def _fingerprint(settings: ImageSettings, raw_folder: Path) -> str:
    path = _path(settings)
    try:
        return fingerprint_files([path]) if path.exists() else missing(path)
    except OSError as error:
        raise UserError(
            f"path={path}: expected an npz file of MedMNIST, got {error}. Correct it."
        ) from error


def _path(settings: ImageSettings) -> Path:
    return Path(str(settings.path)).expanduser()


MEDMNIST = SourceType(
    open=_open,
    fingerprint=_fingerprint,
    path="an npz file of MedMNIST",
    path_required=True,
    labels=True,
    official_split=True,
    crops=(False, True),
)
