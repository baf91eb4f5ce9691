"""Nodes of the data pipeline."""

import logging
from pathlib import Path
from typing import Any

from submanifold.common.errors import error_prefix
from submanifold.data.prepare import draw, few_images, prepare, read_groups, read_labels
from submanifold.data.prepare_table import prepare_table, read_rows
from submanifold.data.settings import ImageSettings, SyntheticSettings, TableSettings

log = logging.getLogger(__name__)

PARTS = ("train", "valid", "test", "manifest")


def prepare_images(data: ImageSettings, folder: Path, raw_folder: Path) -> dict[str, Any]:
    """Download, crop, resize and split images; see :func:`.prepare`."""
    with error_prefix("data"):
        prepared = prepare(data, folder, raw_folder)
        if few := few_images(prepared[0]):
            log.warning("%s", few)
        found = dict(zip(PARTS, prepared, strict=True))
        return {**found, "labels": read_labels(folder), "groups": read_groups(folder)}


def prepare_rows(data: TableSettings, folder: Path, raw_folder: Path) -> dict[str, Any]:
    """Split, dequantize and standardize the rows of a table; see :func:`.prepare_table`."""
    with error_prefix("data"):
        found = dict(zip(PARTS, prepare_table(data, folder, raw_folder), strict=True))
        recorded = {"labels": read_labels(folder), "groups": read_groups(folder)}
        return {**found, **recorded, "rows": read_rows(folder)}


def draw_points(data: SyntheticSettings, folder: Path) -> dict[str, Any]:
    """Draw points from a manifold with a known density; see :func:`.draw`."""
    with error_prefix("data"):
        return dict(zip(PARTS, draw(data, folder), strict=True))
