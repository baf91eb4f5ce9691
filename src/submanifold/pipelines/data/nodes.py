"""Nodes of the data pipeline."""

from pathlib import Path
from typing import Any

import numpy as np

from submanifold.data.preprocess import prepare

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


def prepare_images(settings: dict[str, Any], folder: Path, raw_folder: Path) -> Arrays:
    """Download, crop, resize and split, or find it done; see :func:`prepare`."""
    return prepare(settings, folder, raw_folder)
