"""Sources of images. To add one, write a module with a :class:`SourceType` and register it here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.celeba import CELEBA
from submanifold.data.sources.files import FILES
from submanifold.data.sources.labelled import MEDMNIST, torchvision_source
from submanifold.data.sources.photos import PHOTOS
from submanifold.data.splits import SPLITS

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
    """Identity of the source's content, for cache keys; decodes nothing and needs no network.

    It changes with any byte and is the same for a copy, and for data before and after their
    download.

    Args:
        settings: Settings of images.
        raw_folder: Folder of downloads and of recorded fingerprints.

    Raises:
        UserError: If the files cannot be read.
    """
    return SOURCES[settings.source].fingerprint(settings, raw_folder)
