"""Files of tables: names of columns, and rows in chunks."""

from __future__ import annotations

import csv
import gzip
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import feather, parquet

from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.data.sources.stores import is_hidden
from submanifold.data.tables.columns import duplicates, named

log = logging.getLogger(__name__)

CHUNK_VALUES = 2**21
"""Values of a chunk of rows."""
SNIFFED_LINES = 50
SEPARATORS, WHITESPACE = ",;\t|", r"\s+"
DECIMAL_COMMA, DECIMAL_POINT = re.compile(r"-?\d+,\d+"), re.compile(r"-?\d+\.\d+")
UNNAMED = "__index_level_"
"""Prefix of the name that pandas gives an index without one in Parquet and Feather files."""
TABLES = "a CSV, Parquet, Feather, NPY or NPZ file"


@dataclass(frozen=True)
class TableFile:
    """One file of rows.

    Attributes:
        path: The file.
        columns: Names of its columns.
        chunks: Function of names of columns that yields rows in order; memory is bounded.
        index: Name of the column that pandas wrote as the index, for :attr:`chunks`; None if there
            is none.
    """

    path: Path
    columns: tuple[str, ...]
    chunks: Callable[[Sequence[str]], Iterator[pd.DataFrame]]
    index: str | None = None


def list_files(path: str | Sequence[str]) -> list[Path]:
    """Return the files at a path, the files of a folder by name, or the files of a list.

    Raises:
        UserError: There are none.
    """
    paths = [Path(each).expanduser() for each in ([path] if isinstance(path, str) else path)]
    files: list[Path] = []
    for each in paths:
        if not each.is_dir():
            files.append(each)
            continue
        found = sorted(file for file in each.iterdir()
                       if not is_hidden(file.name) and _reader(file) is not None)  # fmt: skip
        if not found:
            raise UserError(
                f"path={each}: expected {TABLES}, or a folder of them, got a folder without any "
                f"({', '.join(READERS)}). Set another path; images need dataset=folder."
            )
        files += found
    return files


def open_files(files: Sequence[Path]) -> list[TableFile]:
    """Open the files of a table, which must have the same columns.

    Raises:
        UserError: A file cannot be read, or has other columns than the first one.
    """
    tables = [open_file(path) for path in files]
    first = tables[0]
    for each in tables[1:]:
        if missing := [name for name in first.columns if name not in each.columns]:
            raise UserError(
                f"path={each.path}: expected the columns of {first.path.name}, got a file "
                f"without {named(missing)}. Give all files the same columns."
            )
        if extra := [name for name in each.columns if name not in first.columns]:
            raise UserError(
                f"path={each.path}: expected the columns of {first.path.name}, got also "
                f"{named(extra)}. Give all files the same columns."
            )
    return tables


def open_file(path: Path) -> TableFile:
    """Open a file by its suffix.

    Raises:
        UserError: The file cannot be read, or names of columns are not unique.
    """
    reader = _reader(path)
    if reader is None:
        raise UserError(
            f"path={path}: expected {TABLES} ({', '.join(READERS)}), got the suffix "
            f"{path.suffix or 'none'}. Convert it, for example with pandas; images need "
            "dataset=folder."
        )
    if not path.is_file():
        raise UserError(
            f"path={path}: expected {TABLES}, got a path that does not exist (current folder: "
            f"{Path.cwd()}). Correct it."
        )
    with explained(path):
        if not path.stat().st_size:
            raise UserError(f"path={path}: expected a table, got an empty file. Write it again.")
        table = reader(path)
    if twice := duplicates(table.columns):
        raise UserError(
            f"path={path}: expected different names of columns, got {named(twice)} more than once. "
            "Rename the columns."
        )
    return table


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Convert errors of a file that is damaged or not of its format to a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, EOFError, csv.Error) as error:  # pa.ArrowInvalid is a ValueError
        reason = printable(str(error).partition("\n")[0]).removesuffix(".")
        raise UserError(
            f"path={path}: expected a readable {path.suffix.lstrip('.')} file, got an error: "
            f"{reason}. Write or copy the file again."
        ) from error


def _rows(columns: Sequence[str]) -> int:
    return max(1, CHUNK_VALUES // max(1, len(columns)))


def _read_csv(path: Path) -> TableFile:
    lines = _first_lines(path)
    rows = {each: list(csv.reader(lines, delimiter=each)) for each in SEPARATORS}
    separator = max(SEPARATORS, key=lambda each: len(rows[each][0]))
    words = [line.split() for line in lines]
    if len(rows[separator][0]) == 1 < len(words[0]) and len({*map(len, words)}) == 1:
        separator, rows[WHITESPACE] = WHITESPACE, words
    header, fields = rows[separator][0], [each for row in rows[separator][1:] for each in row]
    numbered = header == [*map(str, range(len(header)))]  # by pandas
    has_header = numbered or not all(map(_is_number, header))
    if not has_header:
        log.warning("%s: the first line contains numbers; the columns are x0, x1, ...", path.name)
        header = [f"x{index}" for index in range(len(header))]
    names = [name.strip() for name in header]
    for number, row in enumerate(rows[separator][1:], start=2):
        if any(row[len(names) :]):
            raise UserError(
                f"path={path}: expected {len(names)} values in each line, got {len(row)} in line "
                f"{number}. Correct the first line or the file."
            )
    has_index = names[0] == ""  # of pandas.DataFrame.to_csv
    comma = separator == ";" and any(map(DECIMAL_COMMA.fullmatch, fields)) and not any(
        map(DECIMAL_POINT.fullmatch, fields)
    )  # fmt: skip
    if "" in names[1:]:
        raise UserError(
            f"path={path}: expected a name of every column in the first line, got none for column "
            f"{names.index('', 1) + 1}. Correct the first line."
        )

    def chunks(columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        options: dict[str, Any] = {
            "sep": separator, "decimal": "," if comma else ".", "names": names, "index_col": False,
            "header": 0 if has_header else None,
            "skipinitialspace": True, "chunksize": _rows(names), "low_memory": False,
        }  # fmt: skip
        with pd.read_csv(path, **options) as reader:
            for chunk in reader:
                yield chunk[list(columns)]

    columns, index = (tuple(names[1:]), "") if has_index else (tuple(names), None)
    return TableFile(path, columns, chunks, index)


def _first_lines(path: Path) -> list[str]:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        first = zip(range(SNIFFED_LINES), file, strict=False)
        lines = [line for _, line in first if line.strip()]
    if not lines:
        raise UserError(f"path={path}: expected a table, got an empty file. Write it again.")
    return lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> TableFile:
    with parquet.ParquetFile(path) as file:
        names, index = _names(file.schema_arrow)

    def chunks(columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        with parquet.ParquetFile(path) as file:
            size = _rows(columns)
            for group in range(file.num_row_groups):  # all at once would keep the whole file
                for batch in file.iter_batches(size, [group], list(columns)):
                    yield _to_pandas(batch)[list(columns)]

    return TableFile(path, names, chunks, index)


def _read_feather(path: Path) -> TableFile:
    with pa.memory_map(str(path)) as source:
        if source.read(4) == b"FEA1":  # the format before 2020
            frame = feather.read_feather(path)
            return TableFile(
                path, tuple(map(str, frame.columns)), lambda names: _parts(frame, names)
            )
    with pa.memory_map(str(path)) as source:
        names, index = _names(pa.ipc.open_file(source).schema)

    def chunks(columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        with pa.memory_map(str(path)) as source:
            file = pa.ipc.open_file(source)
            for number in range(file.num_record_batches):
                batch, size = file.get_batch(number).select(list(columns)), _rows(columns)
                for start in range(0, len(batch), size):
                    yield _to_pandas(batch.slice(start, size))

    return TableFile(path, names, chunks, index)


def _names(schema: pa.Schema) -> tuple[tuple[str, ...], str | None]:
    """Return the names of columns without pandas' unnamed index, and the name of the index."""
    written = (schema.pandas_metadata or {}).get("index_columns", [])
    index = [name for name in schema.names if name in written]
    unnamed = {name for name in index if name.startswith(UNNAMED)}
    names = tuple(name for name in schema.names if name not in unnamed)
    return names, index[0] if len(index) == 1 else None


def _to_pandas(batch: pa.RecordBatch) -> pd.DataFrame:
    return batch.replace_schema_metadata(None).to_pandas()


def _read_npy(path: Path) -> TableFile:
    array = np.load(path, mmap_mode="r")
    if array.dtype.names:
        parts = {name: array[name] for name in array.dtype.names}
    elif array.ndim == 2:
        parts = {f"x{index}": array[:, index] for index in range(array.shape[1])}
    else:
        raise UserError(
            f"path={path}: expected an array (rows, columns), got shape {array.shape}. Images need "
            "dataset=folder and image files."
        )
    return TableFile(path, tuple(parts), lambda names: _slices(parts, names))


def _read_npz(path: Path) -> TableFile:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    parts: dict[str, np.ndarray] = {}
    matrices = [name for name, each in arrays.items() if each.ndim == 2]
    for name, each in arrays.items():
        if each.ndim == 1:
            parts[name] = each
        elif each.ndim == 2:
            prefix = "x" if len(matrices) == 1 else name
            parts |= {f"{prefix}{index}": each[:, index] for index in range(each.shape[1])}
    lengths = {len(each) for each in arrays.values() if each.ndim}
    if not parts or len(lengths) > 1 or any(each.ndim not in (1, 2) for each in arrays.values()):
        shapes = ", ".join(f"{name} {each.shape}" for name, each in arrays.items())
        raise UserError(
            f"path={path}: expected arrays (rows, columns) and (rows,) with one number of rows, "
            f"got {shapes or 'none'}. Write another file."
        )
    return TableFile(path, tuple(parts), lambda names: _slices(parts, names))


def _slices(parts: dict[str, np.ndarray], names: Sequence[str]) -> Iterator[pd.DataFrame]:
    size = _rows(names)
    for start in range(0, len(next(iter(parts.values()))), size):
        yield pd.DataFrame({name: np.array(parts[name][start : start + size]) for name in names})


def _parts(frame: pd.DataFrame, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    size = _rows(names)
    for start in range(0, len(frame), size):
        yield frame[start : start + size][list(names)]


def frame_file(frame: pd.DataFrame, name: str) -> TableFile:
    """Return a table in memory as a file."""
    return TableFile(Path(name), tuple(frame.columns), lambda names: _parts(frame, names))


READERS: dict[str, Callable[[Path], TableFile]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".feather": _read_feather,
    ".arrow": _read_feather,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
"""Readers by suffix."""


def is_table(path: Path) -> bool:
    """Return whether a path is a table file, or a folder that contains only table files."""
    if not path.is_dir():
        return path.is_file() and _reader(path) is not None
    names = [each for each in path.iterdir() if not is_hidden(each.name)]
    return bool(names) and all(_reader(each) is not None for each in names)


def _reader(path: Path) -> Callable[[Path], TableFile] | None:
    name = path.name.lower()
    return next((read for suffix, read in READERS.items() if name.endswith(suffix)), None)
