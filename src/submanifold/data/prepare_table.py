"""Preparation of a table: one array on disk for each split, and a manifest."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.data.arrays import context_path, write_chunks
from submanifold.data.prepare import Prepared, Sidecars, prepare_once
from submanifold.data.settings import TableSettings
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.columns import named
from submanifold.data.tables.schema import TableSchema, load_rows, schema_key

CHUNK_VALUES = 2**21

log = logging.getLogger(__name__)


def prepare_table(settings: TableSettings, folder: str | Path, raw_folder: str | Path) -> Prepared:
    """Split, dequantize and standardize the rows of a table, as float32 arrays (N, D).

    As :func:`.prepare`; the folder also gets rows.json with the numbers of the test rows in the
    table, and the raw folder a record of the columns.
    """
    folder, schema = Path(folder), settings.read(Path(raw_folder))

    def write() -> tuple[dict[str, Any], Sidecars]:
        frame, order, groups = load_rows(settings)
        for split, rows in order.items():
            path = folder / f"{split}.npy"
            _write(path, frame, schema.inputs, rows)
            if schema.context is not None:
                _write(context_path(path), frame, schema.context, rows)
        used = frame[[*schema.preprocessor.inputs]]
        hashes = pd.util.hash_pandas_object(used, index=False)
        dropped = settings.missing == "drop" and int(used.isna().any(axis=1).sum())
        duplicates = {split: int(hashes[order[split]].isin(hashes[order["train"]]).sum())
                      for split in ("valid", "test")}  # fmt: skip
        manifest = {
            "columns": schema.preprocessor.to_dict()["columns"],
            "dim": len(schema.inputs.varying),
            "dropped": int(dropped),
            "duplicates": duplicates,
            "source": ", ".join(settings.path or [settings.source]),
            "split": settings.split,
            "seed": settings.seed,
            "split_note": "; ".join(_notes(schema, dropped, duplicates, order)) or None,
        }
        sidecars: Sidecars = {"rows": {"test": order["test"].tolist()}}
        if (label := settings.label_column) is not None:
            sidecars["labels"] = {s: _to_json(frame[label].iloc[r]) for s, r in order.items()}
        if groups is not None:
            sidecars["groups"] = {split: groups[rows].tolist() for split, rows in order.items()}
        return manifest, sidecars

    key = {"key": schema_key(settings)}
    prepared = prepare_once(folder, f"the rows of {settings.source}", key, write)
    by_kind: dict[str, list[str]] = {}
    for column in schema.preprocessor.columns:
        by_kind.setdefault(column.kind, []).append(column.name)
    counted = (f"{len(names)} {kind}: {named(names)}" for kind, names in by_kind.items())
    log.info("columns: %s", "; ".join(counted))
    return prepared


def _notes(
    schema: TableSchema, dropped: int, duplicates: dict[str, int], order: dict[str, np.ndarray]
) -> Iterator[str]:
    columns, train = schema.preprocessor.columns, len(order["train"])
    if constant := [column.name for column in columns if column.kind == "constant"]:
        yield f"constant columns are left out: {named(constant)}"
    if dropped:
        yield f"{dropped:,} rows with missing values are left out"
    for split, count in duplicates.items():
        if count:
            yield f"{count:,} of {len(order[split]):,} {split} rows equal a training row"
    if train < (dim := len(schema.preprocessor.varying)):
        yield (f"there are fewer training rows ({train:,}) than columns ({dim:,}); the density is "
               "not reliable")  # fmt: skip


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
