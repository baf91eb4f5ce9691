"""A table as its settings describe it: rows by split, their preprocessor, and arrays on disk."""

import glob
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.errors import unexpected
from submanifold.common.files import read_json, write_json
from submanifold.data.arrays import (
    Prepared,
    Sidecars,
    prepare_once,
    save_context,
    write_chunks,
)
from submanifold.data.fields import ColumnKind, Counts, TableFields
from submanifold.data.sources.stores import identify
from submanifold.data.splits import SPLITS, assign_groups, check_groups, count_of, split_sizes
from submanifold.data.tables.columns import (
    ColumnProblem,
    Constant,
    Continuous,
    Logarithmic,
    Quantized,
    TableError,
    matching,
    named,
)
from submanifold.data.tables.files import list_files, read_table
from submanifold.data.tables.fit import kind_setting, missing_values
from submanifold.data.tables.preprocessor import Preprocessor, events_of

log = logging.getLogger(__name__)

CHUNK_VALUES = 2**21
MIN_FEATURES = 2
MAX_SHOWN = 40  # columns in the log
MIN_DEFAULT, MAX_DEFAULT = 20, 100_000
"""Rows of the validation and of the test data without data.counts. P-values need 20 rows."""


@dataclass(frozen=True)
class TableSchema:
    """The transformation of a table, fitted to its training rows."""

    preprocessor: Preprocessor  #: The transformation of all columns.
    #: Names of the columns that the density of the others is given.
    condition: list[str] = field(default_factory=list)

    @cached_property
    def inputs(self) -> Preprocessor:
        """The preprocessor of the columns that the model describes."""
        return self.preprocessor.split(self.condition)[0]

    @cached_property
    def context(self) -> Preprocessor | None:
        """The preprocessor of the columns of the condition, if there are any."""
        return self.preprocessor.split(self.condition)[1] if self.condition else None


def read_schema(settings: TableFields, record: Path | None = None) -> TableSchema:
    """Read a table to fit its preprocessor to the training rows.

    The result is recorded in a file, so that other commands do not read the table again.
    """
    if record and (known := read_json(record)):
        return TableSchema(Preprocessor.from_dict(known), known["condition"])
    frame, order, _ = load_rows(settings)
    schema = _fit(settings, frame, order["train"])
    with suppress(OSError):  # a read-only folder
        if record:
            write_json(record, {**schema.preprocessor.to_dict(), "condition": schema.condition})
    return schema


def record_path(raw_folder: Path, key: str) -> Path:
    """Return the file that records the columns of a table, by the cache key of its arrays."""
    return raw_folder / ".tables" / f"{key}.json"


def fingerprint(settings: TableFields) -> str:
    """Identity of the files: names and bytes."""
    if settings.path is None:
        return f"scikit-learn {version('scikit-learn')}:{settings.source}"
    return f"table:{identify(*list_files(settings.path))}"


def load_rows(
    settings: TableFields,
) -> tuple[pd.DataFrame, dict[str, np.ndarray], np.ndarray | None]:
    """Read a table; return its rows, the numbers of those of each split, shuffled, and groups."""
    if settings.source == "table":
        frame = read_table(settings.path or ()).reset_index(drop=True)
    else:
        from sklearn import datasets

        load = getattr(datasets, f"load_{settings.source.removesuffix('_table')}")
        frame = load(as_frame=True).frame.rename(columns=str)
    rows = np.arange(len(frame), dtype=np.uint32)
    if settings.missing == "drop":
        rows = rows[_complete(settings, frame)]
    np.random.default_rng(settings.seed).shuffle(rows)
    groups = None
    if settings.groups is not None:
        column = frame[_name("groups", settings.groups, frame)].astype(str)
        groups = pd.factorize(column, sort=True)[0]
    split = _split(settings, frame, None if groups is None else groups[rows].astype(str), rows)
    return frame, {name: rows[split == name] for name in SPLITS}, groups


def _split(
    settings: TableFields, frame: pd.DataFrame, groups: np.ndarray | None, rows: np.ndarray
) -> np.ndarray:
    """Return the name of the split of each of the rows, which are shuffled; "" for unused ones."""
    counts, total = settings.counts, len(rows)
    if settings.split == "random":
        held_out = min(max(total // 10, min(MIN_DEFAULT, total // 4)), MAX_DEFAULT)
        sizes = split_sizes(total, counts, "rows", held_out)
        if groups is not None:
            split_of = assign_groups(Counter(groups.tolist()), sizes, settings.seed)
            split = np.array([split_of[group] for group in groups.tolist()], object)
            return _limited(split, counts)
        sizes[""] = total - sum(sizes.values())
        return np.repeat([*sizes], [*sizes.values()])
    split = frame[_name("split", settings.split, frame)].astype(str).to_numpy(object)[rows]
    if (values := set(split)) != set(SPLITS):
        expected = f"the values {', '.join(SPLITS)} in this column"
        fix = "Rename them, or set split=random"
        raise unexpected(f"split={settings.split}", expected, named(sorted(values)), fix)
    if groups is not None:
        check_groups(zip(groups.tolist(), split, strict=True))
    return _limited(split, counts)


def _limited(split: np.ndarray, counts: Counts) -> np.ndarray:
    """Replace the names of splits of rows by "" after as many rows as the counts say."""
    for name in SPLITS:
        numbers = np.flatnonzero(split == name)
        split[numbers[count_of(name, counts, len(numbers)) :]] = ""
    return split


def _fit(settings: TableFields, frame: pd.DataFrame, train: np.ndarray) -> TableSchema:
    names, kinds = _inputs(settings, frame), _kinds(settings, frame)
    used, training = frame[names], np.isin(np.arange(len(frame)), train)
    if settings.missing == "drop":
        complete = _complete(settings, frame)
        used, training = used[complete], training[complete]
    chosen = {name: kinds[name] for name in names if name in kinds}
    try:
        preprocessor = Preprocessor.fit(
            used, columns=chosen, scale=settings.scale, training=training
        )
    except TableError as error:
        name = error.problems[0].column
        choices = f"{kind_setting(name, 'ignore')}, or {kind_setting(name, 'category')}"
        fix = f"Correct these values, leave the column out, or take it for categories: {choices}"
        raise TableError(error.problems, fix) from error
    if settings.strict:
        _refuse_all_but_numbers(preprocessor, kinds)
    ignored = tuple(str(name) for name in frame if name not in names)
    preprocessor = replace(preprocessor, ignored=ignored)
    condition = matching("condition", settings.condition or (), frame[names])
    inputs, context = preprocessor.split(condition)
    least = 1 if condition else MIN_FEATURES
    if len(inputs.varying) < least or (condition and not context.varying):
        also = ", and one in condition" if condition else ""
        expected = f"at least {least} columns with different values{also}"
        fix = "A manifold needs several; use a table with more"
        raise unexpected("columns", expected, f"{len(inputs.varying)} of {len(names)}", fix)
    return TableSchema(preprocessor, condition)


def _complete(settings: TableFields, frame: pd.DataFrame) -> np.ndarray:
    """Return which rows (N,) have a value in each column of the model."""
    names, kinds = _inputs(settings, frame), _kinds(settings, frame)
    missing = [missing_values(frame[name], kinds.get(name)) for name in names]
    return ~np.any(missing, axis=0)


def _refuse_all_but_numbers(preprocessor: Preprocessor, kinds: Mapping[str, ColumnKind]) -> None:
    problems = [
        ColumnProblem(row["found"], column.name)
        for column, row in zip(
            preprocessor.columns, preprocessor.description.to_dict("records"), strict=True
        )
        if not isinstance(column, Continuous | Logarithmic | Quantized | Constant) or column.missing
        if column.name not in kinds
    ]
    if problems:
        raise TableError(problems, "Correct them, set their kinds in data.columns, or omit strict")


def _inputs(settings: TableFields, frame: pd.DataFrame) -> list[str]:
    label, split = settings.label_column, settings.split
    ignored = {label and _name("label", label, frame), settings.groups}
    ignored.add(settings.id and _name("id", settings.id, frame))
    ignored |= {*matching("drop", settings.drop, frame), None if split == "random" else split}
    ignored |= {name for name, kind in _kinds(settings, frame).items() if kind == "ignore"}
    chosen = matching("inputs", settings.inputs or frame.columns, frame)
    if not (names := [name for name in chosen if name not in ignored]):
        expected = f"columns of the table ({named(frame.columns)})"
        raise unexpected("columns", expected, "none", "Change inputs, columns or drop")
    return names


def _kinds(settings: TableFields, frame: pd.DataFrame) -> dict[str, ColumnKind]:
    return {
        name: kind
        for pattern, kind in settings.columns.items()
        for name in matching("columns", [pattern], frame)
    }


def _name(setting: str, name: str, frame: pd.DataFrame) -> str:
    return name if name in frame else matching(setting, [glob.escape(name)], frame)[0]


def prepare_table(settings: TableFields, folder: Path, raw_folder: Path) -> Prepared:
    """Split, dequantize and standardize the rows of a table, as float32 arrays (N, D).

    As :func:`.prepare`; the folder also gets rows.json with the numbers of the rows in the table,
    and the raw folder a record of the columns.
    """
    schema = read_schema(settings, record_path(raw_folder, folder.name))

    def write() -> tuple[dict[str, Any], Sidecars]:
        frame, order, groups = load_rows(settings)
        order, unseen = _with_known_categories(schema, frame, order)
        for split, rows in order.items():
            _write(folder / f"{split}.npy", frame, schema, rows)
        used = frame[[*schema.preprocessor.inputs]]
        hashes = pd.util.hash_pandas_object(used, index=False)
        dropped = settings.missing == "drop" and int((~_complete(settings, frame)).sum())
        duplicates = {
            split: int(hashes[order[split]].isin(hashes[order["train"]]).sum())
            for split in ("valid", "test")
        }
        manifest = {
            "columns": schema.preprocessor.to_dict()["columns"],
            "description": schema.preprocessor.description.to_dict("records"),
            "dim": len(schema.inputs.varying),
            "dropped": int(dropped),
            "duplicates": duplicates,
            "source": ", ".join(settings.path or [settings.source]),
            "split": settings.split,
            "seed": settings.seed,
            "split_note": "; ".join(_notes(schema, dropped, unseen, duplicates, order)) or None,
        }
        sidecars: Sidecars = {"rows": {s: r.tolist() for s, r in order.items()}}
        if (label := settings.label_column) is not None:
            sidecars["labels"] = {s: _to_json(frame[label].iloc[r]) for s, r in order.items()}
        if (changes := schema.inputs.changes(used)) is not None:
            sidecars["changes"] = {split: changes[rows].tolist() for split, rows in order.items()}
        if groups is not None:
            sidecars["groups"] = {split: groups[rows].tolist() for split, rows in order.items()}
        return manifest, sidecars

    key = {"settings": settings.content, "fingerprint": fingerprint(settings)}
    prepared = prepare_once(folder, f"the rows of {settings.source}", key, write)
    description = schema.preprocessor.description
    if len(description) > MAX_SHOWN:
        description = description[~description["found"].str.startswith("numbers")][:MAX_SHOWN]
    for row in description.to_dict("records"):
        log.info("{column}: {found} ({used})".format_map(row))
    log.info("data.columns.<name>=number, integer, category or ignore changes the use of a column")
    return prepared


def _with_known_categories(
    schema: TableSchema, frame: pd.DataFrame, order: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Leave out rows whose density is zero; returns the others and their numbers by split."""
    is_unknown = schema.preprocessor.unknown(frame[[*schema.preprocessor.inputs]]).any(axis=1)
    kept = {split: rows[~is_unknown.to_numpy()[rows]] for split, rows in order.items()}
    unseen = {split: len(rows) - len(kept[split]) for split, rows in order.items()}
    if empty := [split for split, rows in kept.items() if not len(rows)]:
        expected = f"{empty[0]} rows whose categories are in the training rows"
        raise unexpected("split", expected, "none", "Set split=random, or add training rows")
    return kept, unseen


def _notes(
    schema: TableSchema,
    dropped: int,
    unseen: dict[str, int],
    duplicates: dict[str, int],
    order: dict[str, np.ndarray],
) -> Iterator[str]:
    columns, train = schema.preprocessor.columns, len(order["train"])
    if constant := [column.name for column in columns if isinstance(column, Constant)]:
        yield f"constant columns are left out: {named(constant)}"
    if dropped:
        yield f"{dropped:,} rows with missing values are left out"
    for split, count in unseen.items():
        if count:
            yield (
                f"{count:,} {split} rows are left out, because they have a category that the "
                "training rows do not have, and no density"
            )
    for split, count in duplicates.items():
        if count:
            yield f"{count:,} of {len(order[split]):,} {split} rows equal a training row"
    if train < (dim := len(schema.preprocessor.varying)):
        yield (
            f"there are fewer training rows ({train:,}) than columns ({dim:,}); the density is "
            "not reliable"
        )


def _write(path: Path, frame: pd.DataFrame, schema: TableSchema, rows: np.ndarray) -> None:
    """Write transformed rows of a table, and their contexts; the noise depends on their numbers."""
    inputs, size = schema.inputs, max(1, CHUNK_VALUES // len(schema.preprocessor.inputs))
    contexts = list[np.ndarray]()

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            table = frame.iloc[part][[*schema.preprocessor.inputs]]
            events = events_of(inputs, schema.context, table, part)
            if events.context is not None:
                contexts.append(events.context)
            yield events.x

    write_chunks(path, chunks(), (len(inputs.varying),), np.float32)
    if contexts:
        save_context(path, np.concatenate(contexts))


def _to_json(values: pd.Series) -> list[Any]:
    """Return numbers and booleans as they are, None for missing values, and text of others."""
    items = values.astype(object).where(values.notna(), None)
    return [item if isinstance(item, bool | int | float | None) else str(item) for item in items]
