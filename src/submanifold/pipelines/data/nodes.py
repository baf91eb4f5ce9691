"""Nodes of the data pipeline."""

import logging
from pathlib import Path
from typing import Any

from submanifold.common.errors import error_prefix
from submanifold.data.prepare import draw, prepare
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.data.tables.schema import prepare_table

log = logging.getLogger(__name__)


def prepare_data(data: Any, folder: Path, raw_folder: Path) -> list[Any]:
    """Write the arrays of each split, which may be larger than the memory.

    Images are cropped and resized, rows of tables standardized, and points of a manifold drawn.
    ``data`` are any :data:`.DataSettings`; Kedro warns about unions.
    """
    with error_prefix("data"):
        if isinstance(data, SyntheticSettings):
            prepared = draw(data, folder)
        elif isinstance(data, ImageSettings):
            prepared = prepare(data, folder, raw_folder)
        else:
            prepared = prepare_table(data, folder, raw_folder)
        if note := prepared[3].get("split_note"):
            log.warning("%s", note)
        return [*prepared]
