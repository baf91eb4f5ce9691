"""Sources of images. To add one, write a module with a :class:`SourceType` and register it here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from submanifold.common.errors import UserError
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.celeba import CELEBA
from submanifold.data.sources.labelled import MEDMNIST, torchvision_source
from submanifold.data.sources.photos import PHOTOS
from submanifold.data.sources.stores import FILES, identify
from submanifold.data.splits import FOLDER, SPLITS

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

__all__ = ["SOURCES", "SPLITS", "Source", "SourceType", "fingerprint", "open_source"]

SOURCES: dict[str, SourceType] = {
    "photos": PHOTOS,
    "celeba": CELEBA,
    "lsun_bedroom": FILES,
    "folder": FILES,
    "mnist": torchvision_source("MNIST"),
    "fashion_mnist": torchvision_source("FashionMNIST"),
    "kmnist": torchvision_source("KMNIST"),
    "cifar10": torchvision_source("CIFAR10"),
    "svhn": torchvision_source("SVHN"),
    "medmnist": MEDMNIST,
}
"""All sources, by the value of the setting `source`."""


def open_source(settings: ImageSettings, raw_folder: Path) -> Source:
    """Open the source of the settings, after its download if necessary.

    Raises:
        UserError: If there are no images that can be read.
    """
    return SOURCES[settings.source].open(settings, raw_folder)


def fingerprint(settings: ImageSettings, raw_folder: Path) -> str:
    """Identity of the source's files, for cache keys: their names, sizes and times of change.

    It does not depend on their folder, and is the same before and after a download.

    Raises:
        UserError: If a folder cannot be read.
    """
    files, groups = SOURCES[settings.source].files(settings, raw_folder), settings.groups
    try:
        if groups not in (None, FOLDER):
            groups = identify(Path(groups).expanduser())
        images = f"standard:{settings.hash}" if files is None else identify(*files)
        return f"{images}+groups:{groups}"
    except OSError as error:
        raise UserError(
            f"path={settings.path}: expected files that can be read, got an error ({error}). "
            "Correct it."
        ) from error
