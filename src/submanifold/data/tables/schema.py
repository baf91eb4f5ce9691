"""A table as its settings describe it: its rows by split, and the preprocessor of its columns."""

from __future__ import annotations

import glob
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError
from submanifold.common.files import read_json, write_json
from submanifold.data.sources.stores import identify
from submanifold.data.splits import SPLITS, assign_groups, check_groups, count_of, share_out
from submanifold.data.tables.columns import matching, named
from submanifold.data.tables.files import list_files, read_table
from submanifold.data.tables.preprocessor import Preprocessor

if TYPE_CHECKING:
    from submanifold.data.settings import ColumnKind, TableSettings

SCHEMA_VERSION = 3
"""Increase it if the same table and settings would give another preprocessor or other splits."""
MIN_DEFAULT, MAX_DEFAULT = 20, 100_000
"""Rows of the validation and of the test data without data.counts. P-values need 20 rows."""
MIN_FEATURES = 2


@dataclass(frozen=True)
class TableSchema:
    """The transformation of a table, fitted to its training rows.

    Attributes:
        preprocessor: The transformation of all columns.
        condition: Names of the columns that the density of the others is given.
    """

    preprocessor: Preprocessor
    condition: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> Preprocessor:
        """The preprocessor of the columns that the model describes."""
        return self.preprocessor.split(self.condition)[0]

    @property
    def context(self) -> Preprocessor | None:
        """The preprocessor of the columns of the condition, if there are any."""
        return self.preprocessor.split(self.condition)[1] if self.condition else None


def read_schema(settings: TableSettings, raw_folder: Path | None = None) -> TableSchema:
    """Read a table to fit its preprocessor to the training rows.

    The result is recorded in the raw folder, if there is one, so that other commands do not read
    the table again.

    Raises:
        UserError: The table cannot be read or split, or columns cannot be used.
    """
    record = raw_folder and raw_folder / ".tables" / f"{schema_key(settings)}.json"
    if record and (known := read_json(record)):
        return TableSchema(Preprocessor.from_dict(known), known["condition"])
    schema = _fit(settings, *load_rows(settings))
    with suppress(OSError):  # a read-only folder
        if record:
            write_json(record, {**schema.preprocessor.to_dict(), "condition": schema.condition})
    return schema


def fingerprint(settings: TableSettings) -> str:
    """Identity of a table: names, sizes and times of change of its files."""
    if settings.source == "table":
        return f"table:{identify(*list_files(settings.path or ()))}"
    return f"scikit-learn {version('scikit-learn')}:{settings.source}"


def schema_key(settings: TableSettings) -> str:
    """Identity of a table and of the settings on which its arrays depend."""
    parts = [settings.content, SCHEMA_VERSION, fingerprint(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_rows(settings: TableSettings) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Read a table, and return its rows and the numbers of those of each split, shuffled."""
    if settings.source == "table":
        frame = read_table(settings.path or ()).reset_index(drop=True)
    else:
        from sklearn import datasets

        load = getattr(datasets, f"load_{settings.source}")
        frame = load(as_frame=True).frame.rename(columns=str)
    rows = np.arange(len(frame), dtype=np.uint32)
    if settings.missing == "drop":
        rows = rows[frame[_inputs(settings, frame)].notna().all(axis=1)]
    np.random.default_rng(settings.seed).shuffle(rows)
    groups = group_numbers(settings, frame)
    split = _split(settings, frame, groups if groups is None else groups[rows], rows)
    return frame, {name: rows[split == name] for name in SPLITS}


def group_numbers(settings: TableSettings, frame: pd.DataFrame) -> np.ndarray | None:
    """Return the numbers of the groups of all rows, or None."""
    if settings.groups is None:
        return None
    return pd.factorize(_column("groups", settings.groups, frame).astype(str), sort=True)[0]


def _split(
    settings: TableSettings, frame: pd.DataFrame, groups: np.ndarray | None, rows: np.ndarray
) -> np.ndarray:
    """Return the name of the split of each of the rows, which are shuffled; "" for unused ones."""
    counts, total = settings.counts, len(rows)
    if settings.split == "random":
        held_out = min(max(total // 10, min(MIN_DEFAULT, total // 4)), MAX_DEFAULT)
        shares = share_out(total, counts, "rows", held_out)
        if groups is not None:
            names = pd.Series(groups).astype(str)
            sizes = {str(name): size for name, size in names.value_counts().items()}
            return names.map(assign_groups(sizes, shares, settings.seed)).to_numpy()
        used = [share.count for share in shares]
        return np.repeat([*(share.split for share in shares), ""], [*used, total - sum(used)])
    split = _column("split", settings.split, frame).astype(str).to_numpy(object)[rows]
    if (values := set(split)) != set(SPLITS):
        raise UserError(
            f"split={settings.split}: expected the values {', '.join(SPLITS)} in this column, got "
            f"{named(sorted(values))}. Rename them, or set split=random."
        )
    if groups is not None:
        check_groups(zip(groups.astype(str).tolist(), split, strict=True))
    for name in SPLITS:
        numbers = np.flatnonzero(split == name)
        split[numbers[count_of(name, counts, len(numbers)) :]] = ""
    return split


def _fit(settings: TableSettings, frame: pd.DataFrame, order: dict[str, np.ndarray]) -> TableSchema:
    names, kinds = _inputs(settings, frame), _kinds(settings, frame)
    training = np.zeros(len(frame), bool)
    training[order["train"]] = True
    preprocessor = Preprocessor.fit(
        frame[names], columns={name: kinds[name] for name in names if name in kinds},
        categorical=settings.categorical, missing=settings.missing, scale=settings.scale,
        training=training,
    )  # fmt: skip
    condition = matching("condition", settings.condition or (), frame[names])
    inputs, context = preprocessor.split(condition)
    least = 1 if condition else MIN_FEATURES
    if len(inputs.varying) < least or (condition and not context.varying):
        raise UserError(
            f"columns: expected at least {least} columns with different values"
            f"{', and one in condition' if condition else ''}, got {len(inputs.varying)} of "
            f"{len(names)}. A manifold needs several; use a table with more."
        )
    return TableSchema(preprocessor, condition)


def _inputs(settings: TableSettings, frame: pd.DataFrame) -> list[str]:
    """Return the names of the columns that the model uses, in the table's order."""
    label = settings.label_column
    if label is not None:
        _column("label", label, frame)
    ignored = {label, settings.groups, *matching("drop", settings.drop, frame)}
    ignored |= {name for name, kind in _kinds(settings, frame).items() if kind == "ignore"}
    if settings.split != "random":
        ignored.add(settings.split)
    chosen = matching("inputs", settings.inputs or frame.columns, frame)
    if not (names := [name for name in chosen if name not in ignored]):
        raise UserError(
            f"columns: expected columns of the table ({named(frame.columns)}), got none. Change "
            "inputs, columns or drop."
        )
    return names


def _kinds(settings: TableSettings, frame: pd.DataFrame) -> dict[str, ColumnKind]:
    return {name: kind for pattern, kind in settings.columns.items()
            for name in matching("columns", [pattern], frame)}  # fmt: skip


def _column(setting: str, name: str, frame: pd.DataFrame) -> pd.Series:
    """Return a column; raise a UserError if there is none."""
    return frame[name if name in frame else matching(setting, [glob.escape(name)], frame)[0]]
