"""Preparation of a table: one array on disk for each split, and a manifest."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.files import read_json, write_json
from submanifold.data.arrays import context_path, write_chunks
from submanifold.data.prepare import GROUPS, LABELS, Prepared, prepare_once, remove_old
from submanifold.data.settings import TableSettings
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.schema import group_numbers, load_rows, schema_key

ROWS = "rows.json"
CHUNK_VALUES = 2**21

log = logging.getLogger(__name__)


def prepare_table(settings: TableSettings, folder: Path, raw_folder: Path) -> Prepared:
    """Split, dequantize and standardize the rows of a table.

    Finished work is returned. The training rows are in a random order, too.

    Args:
        settings: The table and its columns.
        folder: Gets train.npy, valid.npy, test.npy, rows.json with the numbers of the test rows in
            the table, labels.json and groups.json if there are any, and finally manifest.json;
            with a condition also files of the contexts.
        raw_folder: Folder in which the columns of tables are recorded.

    Returns:
        Three float32 arrays (N, D), and the manifest.

    Raises:
        UserError: If the table cannot be read or split, or a column cannot be used.
    """
    schema = settings.read(raw_folder)

    def write() -> dict[str, Any]:
        began, (frame, order) = time.monotonic(), load_rows(settings)
        remove_old(folder)
        for split, rows in order.items():
            path = folder / f"{split}.npy"
            _write(path, frame, schema.inputs, rows)
            if schema.context is not None:
                _write(context_path(path), frame, schema.context, rows)
        write_json(folder / ROWS, {"test": order["test"].tolist()})
        label, groups = settings.label_column, group_numbers(settings, frame)
        for name, values in ((LABELS, frame.get(label)), (GROUPS, groups)):
            if values is not None:
                items = {split: _to_json(pd.Series(values).iloc[rows])
                         for split, rows in order.items()}  # fmt: skip
                write_json(folder / name, items)
        return {
            "source": ", ".join(settings.paths) or settings.source,
            "counts": schema.counts,
            "columns": schema.describe(),
            "dim": len(schema.inputs.varying),
            "split": settings.split,
            "split_note": "; ".join(schema.notes) or None,
            "groups": schema.groups,
            "dropped": schema.dropped,
            "duplicates": schema.duplicates,
            "seed": settings.seed,
            "seconds": round(time.monotonic() - began, 2),
        }

    key = {"key": schema_key(settings)}
    prepared = prepare_once(folder, f"the rows of {settings.source}", key, write)
    log.info("columns: %s", schema.summary)
    for note in schema.notes:
        log.warning("%s", note)
    return prepared


def read_rows(folder: Path) -> dict[str, list[int]]:
    """Read the numbers from 0 of prepared test rows in their table, ``{"test": [...]}``."""
    return read_json(folder / ROWS) or {}


def _write(path: Path, frame: pd.DataFrame, preprocessor: Preprocessor, rows: np.ndarray) -> None:
    """Write transformed rows of a table; the noise depends on their numbers."""
    size = max(1, CHUNK_VALUES // len(preprocessor.inputs))
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    chunks = (preprocessor.transform(frame.iloc[part][[*preprocessor.inputs]], part)
              for part in parts)  # fmt: skip
    write_chunks(path, chunks, (len(preprocessor.varying),), np.float32, len(rows))


def _to_json(values: pd.Series) -> list[Any]:
    """Return numbers and booleans as they are, None for missing values, and text of others."""
    items = values.astype(object).where(values.notna(), None)
    return [item if isinstance(item, bool | int | float | None) else str(item) for item in items]
