"""Nodes of the data pipeline."""

from pathlib import Path
from typing import Any

from submanifold.data.preprocess import prepare, read_labels
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.data.vectors import draw
from submanifold.errors import named

PARTS = ("train", "valid", "test", "manifest")


def prepare_images(data: ImageSettings, folder: Path, raw_folder: Path) -> dict[str, Any]:
    """Download, crop, resize and split images, or find it done; see :func:`prepare`."""
    with named("data"):
        found = dict(zip(PARTS, prepare(data, folder, raw_folder), strict=True))
        return {**found, "labels": read_labels(folder)}


def draw_points(data: SyntheticSettings, folder: Path) -> dict[str, Any]:
    """Draw points from a manifold with a known density, or find it done; see :func:`draw`."""
    with named("data"):
        return dict(zip(PARTS, draw(data, folder), strict=True))
