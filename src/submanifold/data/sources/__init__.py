"""Sources of images. To add one, write a module with a :class:`SourceType` and register it here."""

from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.digits import DIGITS
from submanifold.data.sources.labelled import MEDMNIST, torchvision_source
from submanifold.data.sources.photos import PHOTOS
from submanifold.data.sources.stores import CELEBA, IMAGE_FILES

__all__ = ["SOURCES", "Source", "SourceType"]

SOURCES: dict[str, SourceType] = {
    "digits": DIGITS,
    "photos": PHOTOS,
    "celeba": CELEBA,
    "lsun_bedroom": IMAGE_FILES,
    "folder": IMAGE_FILES,
    "mnist": torchvision_source("MNIST"),
    "fashion_mnist": torchvision_source("FashionMNIST"),
    "kmnist": torchvision_source("KMNIST"),
    "cifar10": torchvision_source("CIFAR10"),
    "svhn": torchvision_source("SVHN"),
    "medmnist": MEDMNIST,
}
"""All sources, by the value of the setting `source`."""
