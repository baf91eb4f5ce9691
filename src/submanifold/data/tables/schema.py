"""A table as its settings describe it: its rows by split, and the preprocessor of its columns."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError, did_you_mean
from submanifold.common.files import printable, read_json, write_json
from submanifold.data.sources.stores import identify
from submanifold.data.splits import SPLITS, assign_groups, share_out
from submanifold.data.tables.columns import Column, named
from submanifold.data.tables.files import list_files, read_table
from submanifold.data.tables.preprocessor import Preprocessor

if TYPE_CHECKING:
    from submanifold.data.settings import ColumnKind, TableSettings

SCHEMA_VERSION = 2
"""Increase it if the same table and settings would give another preprocessor or other splits."""
MIN_DEFAULT, MAX_DEFAULT = 20, 100_000
"""Rows of the validation and of the test data without data.counts. P-values need 20 rows."""
LABEL_NAMES = ("class", "label", "labels", "target", "y", "anomaly", "outlier", "is_anomaly")
FEW_LABELS = 20
MIN_FEATURES = 2


@dataclass(frozen=True)
class TableSchema:
    """What is known of a table before its arrays are written.

    Attributes:
        preprocessor: The transformation, fitted to the training rows.
        counts: Numbers of rows by split.
        groups: Numbers of groups by split, or None.
        dropped: Number of rows with missing values that are left out.
        duplicates: Numbers of validation and test rows that equal a training row.
        notes: Remarks for the user.
        condition: Names of the columns that the density of the others is given.
    """

    preprocessor: Preprocessor
    counts: dict[str, int]
    groups: dict[str, int] | None = None
    dropped: int = 0
    duplicates: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    condition: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> Preprocessor:
        """The preprocessor of the columns that the model describes."""
        return self.preprocessor.split(self.condition)[0]

    @property
    def context(self) -> Preprocessor | None:
        """The preprocessor of the columns of the condition, if there are any."""
        return self.preprocessor.split(self.condition)[1] if self.condition else None

    @property
    def summary(self) -> str:
        """The columns by kind, for the log."""
        by_kind: dict[str, list[str]] = {}
        for column in self.preprocessor.columns:
            step = f" (step {column.step:.5g})" if column.kind == "quantized" else ""
            by_kind.setdefault(column.kind, []).append(column.name + step)
        return "; ".join(f"{len(names)} {kind}: {named(names)}" for kind, names in by_kind.items())

    def describe(self) -> list[dict[str, Any]]:
        """Describe the columns for the manifest: name, kind, step, bits and range."""
        described = []
        for column in self.preprocessor.columns:
            bits = None if column.bits is None else round(column.bits, 2)
            row = {"name": column.feature, "kind": column.kind, "step": column.step, "bits": bits}
            if not column.names:
                row |= {"low": column.low, "high": column.high}
            described.append({name: value for name, value in row.items() if value is not None})
        return described


def read_schema(settings: TableSettings, raw_folder: Path | None = None) -> TableSchema:
    """Read a table to fit its preprocessor to the training rows.

    The result is recorded in the raw folder, if there is one, so that other commands do not read
    the table again.

    Raises:
        UserError: The table cannot be read or split, or columns cannot be used.
    """
    record = raw_folder and raw_folder / ".tables" / f"{schema_key(settings)}.json"
    if record and (known := read_json(record)):
        preprocessor = Preprocessor.from_dict(known["preprocessor"])
        return TableSchema(**known | {"preprocessor": preprocessor})
    schema = _fit(settings, *load_rows(settings))
    with suppress(OSError):  # a read-only folder
        if record:
            write_json(record, vars(schema) | {"preprocessor": schema.preprocessor.to_dict()})
    return schema


def fingerprint(settings: TableSettings) -> str:
    """Identity of a table: names, sizes and times of change of its files."""
    if settings.source == "table":
        return f"table:{identify(*list_files(settings.paths))}"
    return f"scikit-learn {version('scikit-learn')}:{settings.source}"


def schema_key(settings: TableSettings) -> str:
    """Identity of a table and of the settings on which its arrays depend."""
    parts = [settings.content, SCHEMA_VERSION, fingerprint(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_rows(settings: TableSettings) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Read a table, and return its rows and the numbers of those of each split, shuffled."""
    if settings.source == "table":
        frame = read_table(settings.paths).reset_index(drop=True)
    else:
        from sklearn import datasets

        load = getattr(datasets, f"load_{settings.source}")
        frame = load(as_frame=True).frame.rename(columns=str)
    if frame.empty:
        raise UserError(f"path={', '.join(settings.paths)}: expected rows, got none.")
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
    names = frame[_known("groups", settings.groups, frame)]
    if without := int(names.isna().sum()):
        raise UserError(
            f"groups={settings.groups}: expected a group of every row, got none for {without:,}. "
            "Fill them, or leave groups out."
        )
    return pd.factorize(names.astype(str), sort=True)[0]


def _split(
    settings: TableSettings, frame: pd.DataFrame, groups: np.ndarray | None, rows: np.ndarray
) -> np.ndarray:
    """Return the name of the split of each of the rows, which are shuffled; "" for unused ones."""
    column, counts, total = settings.split_column, settings.counts, len(rows)
    if column is None:
        held_out = min(max(total // 10, min(MIN_DEFAULT, total // 4)), MAX_DEFAULT)
        shares = share_out(total, counts, "rows", held_out)
        if groups is not None:
            numbers, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
            size_of = {str(n): int(size) for n, size in zip(numbers, sizes, strict=True)}
            assigned = assign_groups(size_of, shares, settings.seed)
            return np.array([assigned[str(number)] for number in numbers])[inverse]
        unused = total - sum(share.count for share in shares)
        return np.repeat([*(share.split for share in shares), ""],
                         [*(share.count for share in shares), unused])  # fmt: skip
    split = frame[_known("split", column, frame)].astype(str).to_numpy(object)[rows]
    if (names := set(split)) != set(SPLITS):
        raise UserError(
            f"split={column}: expected the values {', '.join(SPLITS)} in this column, got "
            f"{named(sorted(names))}. Rename them, or set split=random."
        )
    if groups is not None:
        pairs = pd.DataFrame({"group": groups, "split": split}).drop_duplicates()
        if divided := int(pairs["group"].duplicated().sum()):
            raise UserError(
                f"groups: expected each group in one part of split={column}, got {divided} in "
                "several. Leave groups out, or set split=random, which keeps groups together."
            )
    for name in SPLITS:
        numbers, wanted = np.flatnonzero(split == name), getattr(counts, name)
        if wanted is not None and wanted > len(numbers):
            raise UserError(
                f"counts.{name}: expected at most {len(numbers):,}, the rows of this part, got "
                f"{wanted:,}. Decrease it."
            )
        split[numbers[wanted or len(numbers) :]] = ""
    return split


def _fit(settings: TableSettings, frame: pd.DataFrame, order: dict[str, np.ndarray]) -> TableSchema:
    """Fit the preprocessor to the training rows, and count duplicated rows."""
    groups, names = group_numbers(settings, frame), _inputs(settings, frame)
    kinds, training = _kinds(settings, frame), np.zeros(len(frame), bool)
    training[order["train"]] = True
    frame = frame[names]
    preprocessor = Preprocessor.fit(
        frame, columns={name: kinds[name] for name in names if name in kinds},
        categorical=settings.categorical, missing=settings.missing, scale=settings.scale,
        training=training,
    )  # fmt: skip
    condition = _matching("condition", settings.condition or (), frame)
    inputs, context = preprocessor.split(condition)
    least = 1 if condition else MIN_FEATURES
    if len(inputs.varying) < least or (condition and not context.varying):
        raise UserError(
            f"columns: expected at least {least} columns with different values"
            f"{', and one in condition' if condition else ''}, got {len(inputs.varying)} of "
            f"{len(names)}. A manifold needs several; use a table with more."
        )
    hashes = pd.util.hash_pandas_object(frame, index=False)
    schema = TableSchema(
        preprocessor,
        counts={split: len(rows) for split, rows in order.items()},
        groups=None if groups is None else {
            split: len(np.unique(groups[rows])) for split, rows in order.items()
        },
        dropped=int(frame.isna().any(axis=1).sum()) if settings.missing == "drop" else 0,
        duplicates={split: int(hashes[order[split]].isin(hashes[training]).sum())
                    for split in ("valid", "test")},
        condition=condition,
    )  # fmt: skip
    return replace(schema, notes=[*_notes(schema, settings)])


def _inputs(settings: TableSettings, frame: pd.DataFrame) -> list[str]:
    """Return the names of the columns that the model uses, in the table's order."""
    label, ignored = settings.label_column, {settings.groups, settings.split_column}
    ignored |= {label and _known("label", label, frame), *_matching("drop", settings.drop, frame)}
    ignored |= {name for name, kind in _kinds(settings, frame).items() if kind == "ignore"}
    chosen = _matching("inputs", settings.inputs or ["*"], frame)
    if not (names := [name for name in chosen if name not in ignored]):
        raise UserError(
            f"columns: expected columns of the table ({named(frame.columns)}), got none. Change "
            "inputs, columns or drop."
        )
    return names


def _kinds(settings: TableSettings, frame: pd.DataFrame) -> dict[str, ColumnKind]:
    return {name: kind for pattern, kind in settings.columns.items()
            for name in _matching("columns", [pattern], frame)}  # fmt: skip


def _matching(setting: str, patterns: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Return the columns that names or patterns match, in the table's order."""
    matches: set[str] = set()
    for pattern in patterns:
        names = [pattern] if pattern in frame else fnmatch.filter(frame.columns, pattern)
        matches |= {*names} or {_known(setting, pattern, frame)}
    return [name for name in frame if name in matches]


def _known(setting: str, name: str, frame: pd.DataFrame) -> str:
    """Return the name of a column; raise a UserError if there is none."""
    if name not in frame:
        raise UserError(
            f"{setting}: expected columns of the table or patterns of them ({named(frame.columns)})"
            f", got {printable(name)}.{did_you_mean(name, frame.columns)}"
        )
    return name


def _notes(schema: TableSchema, settings: TableSettings) -> Iterator[str]:
    columns, counts = schema.preprocessor.columns, schema.counts
    if constant := [column.name for column in columns if column.kind == "constant"]:
        yield f"constant columns are left out: {named(constant)}"
    if schema.dropped:
        yield f"{schema.dropped:,} rows with missing values are left out"
    for name, count in schema.duplicates.items():
        if count:
            yield f"{count:,} of {counts[name]:,} {name} rows equal a training row"
    if settings.label is None and (likely := [*filter(_is_label, columns)]):
        name = likely[0].name
        yield (f"column {name} looks like a label, but is an input of the model; set label={name} "
               "to keep it with the rows")  # fmt: skip
    if counts["train"] < (dim := len(schema.preprocessor.varying)):
        yield (f"there are fewer training rows ({counts['train']:,}) than columns ({dim:,}); the "
               "density is not reliable")  # fmt: skip


def _is_label(column: Column) -> bool:
    few = column.bits is not None and 2**column.bits < FEW_LABELS + 1
    return (few or column.kind == "categorical") and column.name.lower() in LABEL_NAMES
