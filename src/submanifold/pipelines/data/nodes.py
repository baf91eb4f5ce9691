"""Nodes of the data pipeline."""

from pathlib import Path
from typing import Any

import numpy as np

from submanifold.data.preprocess import prepare
from submanifold.data.settings import SyntheticSettings, read_data_settings
from submanifold.data.vectors import draw

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


def prepare_data(settings: dict[str, Any], folder: Path, raw_folder: Path) -> Arrays:
    """Download, crop, resize and split images, or draw points; or find it done.

    See :func:`prepare` and :func:`draw`.
    """
    if isinstance(read_data_settings(settings), SyntheticSettings):
        return draw(settings, folder)
    return prepare(settings, folder, raw_folder)
