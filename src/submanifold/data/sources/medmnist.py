"""MedMNIST's npz files, with their official splits."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from submanifold.common.errors import UserError
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.labelled import Labelled, fingerprint_unpacked, open_labelled

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

NAMES = {"train": "train", "valid": "val", "test": "test"}
FILE = "an npz file of MedMNIST"


def _open(settings: ImageSettings, raw_folder: Path) -> Source:
    path = _path(settings)
    try:
        if not path.is_file():  # reading a pipe may block
            raise ValueError(f"not a file (current folder: {Path.cwd()})")
        with np.load(path, allow_pickle=False) as arrays:
            data = {split: Labelled(arrays[f"{name}_images"], arrays[f"{name}_labels"])
                    for split, name in NAMES.items()}  # fmt: skip
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(
            f"path={path}: expected {FILE} with train_images, train_labels, and the same of val "
            f"and test, got: {error}. Correct it."
        ) from error
    for split, (images, labels) in data.items():
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or images.shape[3:] not in ((), (3,))
        ):
            raise UserError(
                f"path={path}: expected uint8 images of two dimensions, grey or RGB, got "
                f"{images.dtype} of shape {images.shape}. Choose another file."
            )
        data[split] = Labelled(images, labels[:, 0] if labels.shape[1:] == (1,) else labels)
    return open_labelled(settings, data)


def _fingerprint(settings: ImageSettings, raw_folder: Path) -> str:
    path = _path(settings)
    if not path.exists():
        return f"missing:{path.absolute()}"
    try:
        return fingerprint_unpacked([path])
    except OSError as error:
        raise UserError(f"path={path}: expected {FILE}, got {error}. Correct it.") from error


def _path(settings: ImageSettings) -> Path:
    return Path(str(settings.path)).expanduser()


MEDMNIST = SourceType(
    open=_open,
    fingerprint=_fingerprint,
    path=FILE,
    path_required=True,
    labels=True,
    official_split=True,
)
