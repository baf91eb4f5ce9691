"""Preparation of a table: one array on disk for each split, and a manifest."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.files import read_json, write_json
from submanifold.data.arrays import context_path, write_chunks
from submanifold.data.prepare import Prepared, Written, prepare_once
from submanifold.data.settings import TableSettings
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.columns import named
from submanifold.data.tables.schema import TableSchema, group_numbers, load_rows, schema_key

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

    def write() -> Written:
        frame, order = load_rows(settings)
        for split, rows in order.items():
            path = folder / f"{split}.npy"
            _write(path, frame, schema.inputs, rows)
            if schema.context is not None:
                _write(context_path(path), frame, schema.context, rows)
        write_json(folder / ROWS, {"test": order["test"].tolist()})
        label, groups = frame.get(settings.label_column), group_numbers(settings, frame)
        known = frame[[*schema.preprocessor.inputs]]
        hashes = pd.util.hash_pandas_object(known, index=False)
        is_incomplete = known.isna().any(axis=1) & (settings.missing == "drop")
        manifest = {
            "columns": schema.preprocessor.to_dict()["columns"],
            "dim": len(schema.inputs.varying),
            "dropped": int(is_incomplete.sum()),
            "duplicates": {split: int(hashes[order[split]].isin(hashes[order["train"]]).sum())
                           for split in ("valid", "test")},
            "source": ", ".join(settings.path or [settings.source]),
            "split": settings.split,
            "seed": settings.seed,
        }  # fmt: skip
        manifest["split_note"] = "; ".join(_notes(schema, manifest, order)) or None
        return (
            manifest,
            None if label is None else {s: _to_json(label.iloc[rows]) for s, rows in order.items()},
            None if groups is None else {s: groups[rows].tolist() for s, rows in order.items()},
        )

    key = {"key": schema_key(settings)}
    prepared = prepare_once(folder, f"the rows of {settings.source}", key, write)
    by_kind: dict[str, list[str]] = {}
    for column in schema.preprocessor.columns:
        by_kind.setdefault(column.kind, []).append(column.name)
    counted = (f"{len(names)} {kind}: {named(names)}" for kind, names in by_kind.items())
    log.info("columns: %s", "; ".join(counted))
    return prepared


def _notes(
    schema: TableSchema, manifest: dict[str, Any], order: dict[str, np.ndarray]
) -> Iterator[str]:
    columns, train = schema.preprocessor.columns, len(order["train"])
    if constant := [column.name for column in columns if column.kind == "constant"]:
        yield f"constant columns are left out: {named(constant)}"
    if manifest["dropped"]:
        yield f"{manifest['dropped']:,} rows with missing values are left out"
    for name, count in manifest["duplicates"].items():
        if count:
            yield f"{count:,} of {len(order[name]):,} {name} rows equal a training row"
    if train < (dim := len(schema.preprocessor.varying)):
        yield (f"there are fewer training rows ({train:,}) than columns ({dim:,}); the density is "
               "not reliable")  # fmt: skip


def read_rows(folder: Path) -> dict[str, list[int]]:
    """Read the numbers from 0 of prepared test rows in their table, ``{"test": [...]}``."""
    return read_json(folder / ROWS) or {}


def _write(path: Path, frame: pd.DataFrame, preprocessor: Preprocessor, rows: np.ndarray) -> None:
    """Write transformed rows of a table; the noise depends on their numbers."""
    size = max(1, CHUNK_VALUES // len(preprocessor.inputs))
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    chunks = (preprocessor.transform(frame.iloc[part][[*preprocessor.inputs]], part)
              for part in parts)  # fmt: skip
    write_chunks(path, chunks, (len(preprocessor.varying),), np.float32)


def _to_json(values: pd.Series) -> list[Any]:
    """Return numbers and booleans as they are, None for missing values, and text of others."""
    items = values.astype(object).where(values.notna(), None)
    return [item if isinstance(item, bool | int | float | None) else str(item) for item in items]
