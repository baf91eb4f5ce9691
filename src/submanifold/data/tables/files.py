"""Files of tables, read as DataFrames."""

import bz2
import codecs
import csv
import gzip
import logging
import lzma
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from submanifold.common.errors import UserError, import_extra, printable, unexpected
from submanifold.common.files import expand_user
from submanifold.data.sources.stores import HIDDEN
from submanifold.data.tables.columns import MAX_EXACT, MAX_NAMED, named

log = logging.getLogger(__name__)

SNIFFED_LINES = 50
SEPARATORS = ",;\t|"
BLANKS = r"\s+"
SEPARATOR_LINE = re.compile(r'"?sep=.?"?')  #: Of spreadsheets, above the names of columns.
NUMBER = r"(?m)(^|;)-?\d+{}\d+(;|$)"  #: A number with a decimal mark between semicolons.
ENCODINGS = "utf-8-sig", "cp1252"  # the second is that of spreadsheets on Windows
UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
COMPRESSIONS: dict[str, Callable[..., Any]] = {
    "": open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
"""Openers of CSV files by suffix; pandas decompresses the same."""
MIN_COUNTED = 3  # consecutive integers that are taken for names, such as years


UNREADABLE = (ValueError, OSError, EOFError, MemoryError, OverflowError, csv.Error, lzma.LZMAError)
"""Errors of damaged files; pa.ArrowInvalid is a ValueError."""


def list_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files at a path, the files of a folder by name, or the files of a list."""
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        file = expand_user(path)
        in_folder = file.iterdir() if file.is_dir() else [file]
        tables = sorted(path for path in in_folder if path.is_file() and is_table(path))
        if not tables:
            problem = f"the suffix {file.suffix or 'none'}" if file.is_file() else "no such file"
            expected = "a CSV, Parquet, Feather, NPY or NPZ file, or a folder of them"
            got = f"{problem} (current folder: {Path.cwd()})"
            fix = "Correct it, or convert the file; images need dataset=folder"
            raise unexpected(f"path={file}", expected, got, fix)
        files += tables
    return files


def is_table(path: Path) -> bool:
    """Return whether a path is a table file, or a folder that contains only table files."""
    if path.is_dir():
        files = [file for file in path.iterdir() if not HIDDEN.match(file.name)]
        return bool(files) and all(map(is_table, files))
    name = path.name.lower()
    return path.is_file() and not HIDDEN.match(name) and name.endswith(tuple(READERS))


def read_table(paths: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """Read a file, the files of a folder, or a list of files with the same columns.

    The names of columns are text. The index is that which pandas wrote, or row numbers from 0; with
    several files its first level is the path. An index with a name is a column, too.
    """
    files = list_files(paths)
    frames = [_read(file) for file in files]
    for file, frame in zip(files, frames, strict=True):
        if other := frames[0].columns.symmetric_difference(frame.columns).tolist():
            problem = f"but only one of them has {named(other)}. Give all files the same columns"
            raise UserError(f"path={file}: expected the columns of {files[0].name}, {problem}.")
    return frames[0] if len(frames) == 1 else pd.concat(frames, keys=[*map(str, files)])


def _read(path: Path) -> pd.DataFrame:
    read = next(read for suffix, read in READERS.items() if path.name.lower().endswith(suffix))
    if read is not _read_arrays:
        import_extra("pyarrow", "parquet")
    try:
        frame = read(path)
    except UserError:
        raise
    except UNREADABLE as error:
        reason = printable(str(error).partition("\n")[0]).removesuffix(".")
        expected = f"a readable {path.suffix.lstrip('.')} table"
        fix = "Write or copy the file again; images need dataset=folder"
        raise unexpected(f"path={path}", expected, f"an error: {reason}", fix) from error
    if frame.index.nlevels > 1:
        frame = frame.reset_index()
    elif frame.index.name is not None:
        frame[frame.index.name] = frame.index
    return frame.set_axis(frame.columns.map(str), axis=1)


def _read_csv(path: Path) -> pd.DataFrame:
    with _open(path, "rb") as file:
        if file.read(2) in UTF_16:
            return _parse_csv(path, "utf-16")
    try:
        return _parse_csv(path, ENCODINGS[0])
    except UnicodeDecodeError:
        log.warning("%s: read as %s, because it is not UTF-8", path.name, ENCODINGS[1])
        return _parse_csv(path, ENCODINGS[1])


def _open(path: Path, mode: str, encoding: str | None = None) -> Any:
    suffix = path.suffix.lower()
    return COMPRESSIONS.get(suffix, open)(path, mode, encoding=encoding)


@dataclass(frozen=True)
class _Layout:
    """How a CSV file is written.

    Attributes:
        names: Names of columns in the header, without blanks at their ends.
        separator: Separator of columns, a regular expression for any blanks.
        decimal: Decimal mark.
        start: Number of lines before the header.
        encoding: Encoding of the file.
    """

    names: Sequence[str]
    separator: str
    decimal: str
    start: int
    encoding: str

    def read(self, path: Path) -> pd.DataFrame:
        """Read the file with the types that pandas finds."""
        if self.separator == BLANKS:  # pyarrow knows single characters only
            return self._read(path, engine="c", float_precision="round_trip", index_col=False)
        return self._read(path, engine="pyarrow")  # fast, and rounds correctly

    def read_texts(self, path: Path, columns: Sequence[str]) -> pd.DataFrame:
        """Read some columns as text."""
        return self._read(path, engine="c", dtype=str, usecols=columns)

    def _read(self, path: Path, **options: Any) -> pd.DataFrame:
        return pd.read_csv(
            path,
            sep=self.separator,
            names=_distinct(self.names),
            header=0,
            skiprows=self.start,
            encoding=self.encoding,
            decimal=self.decimal,
            **options,
        )


def _parse_csv(path: Path, encoding: str) -> pd.DataFrame:
    """Read a CSV file; its separator and its decimal mark are found."""
    layout = _find_layout(path, encoding)
    frame = layout.read(path)
    numbers = frame.select_dtypes("float64")
    if large := [*numbers.columns[numbers.abs().max() >= MAX_EXACT]]:  # may be rounded integers
        for name, column in layout.read_texts(path, large).items():
            if column.dropna().str.fullmatch(r"\s*-?\d+\s*").all():
                integers = column.astype(object).where(column.notna(), "0").map(int)
                frame[name] = integers.astype(object).where(column.notna(), None)
    for name in frame.select_dtypes("str"):
        frame[name] = frame[name].str.strip()
    _check_header(path, frame, layout)
    return frame.set_index("").rename_axis(None) if layout.names[0] == "" else frame


def _find_layout(path: Path, encoding: str) -> _Layout:
    with _open(path, "rt", encoding) as file:
        first = [line.rstrip("\n") for line in islice(file, SNIFFED_LINES)]
    is_empty = [
        not line.strip(f'{SEPARATORS} "') or SEPARATOR_LINE.fullmatch(line) for line in first
    ]
    start = next((number for number, empty in enumerate(is_empty) if not empty), len(first))
    lines = [line for line in first[start:] if line.strip()]
    if not lines:
        raise ValueError("No columns to parse from file")
    if any("\0" in line for line in lines):
        fix = "Save the table as CSV in UTF-8"
        raise unexpected(f"path={path}", "text in UTF-8", "null characters", fix)
    separator, names = _split_header(path, lines)
    body, decimal = "\n".join(lines[1:]), "."
    if separator == ";" and re.search(NUMBER.format(","), body):
        decimal = "." if re.search(NUMBER.format(r"\."), body) else ","
    return _Layout([name.strip() for name in names], separator, decimal, start, encoding)


def _split_header(path: Path, lines: Sequence[str]) -> tuple[str, list[str]]:
    """Return the separator of columns and their names in the first line."""
    headers = {mark: next(csv.reader(lines[:1], delimiter=mark)) for mark in SEPARATORS}
    separator, names = max(headers.items(), key=lambda header: len(header[1]))
    if sum(len(header) == len(names) > 1 for header in headers.values()) > 1:
        fix = "Quote the names that contain one of the others"
        raise unexpected(f"path={path}", "names with one separator", lines[0], fix)
    if len([*csv.reader(lines[:2], delimiter=separator)]) < len(lines[:2]):
        expected, fix = "names of columns in one line", "Remove it from the name of the column"
        raise unexpected(f"path={path}", expected, "a line break within quotes", fix)
    words = [line.split() for line in lines]
    if len(names) == 1 < len(words[0]) and len({*map(len, words)}) == 1:
        return BLANKS, words[0]
    return separator, names


def _check_header(path: Path, frame: pd.DataFrame, layout: _Layout) -> None:
    """Refuse numbers as names of columns of numbers, unless they are counted, such as years."""
    names, separator = layout.names, " " if layout.separator == BLANKS else layout.separator
    is_number = [types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    first = [name for name, chosen in zip(names, is_number, strict=True) if chosen]
    texts = pd.Series(first, dtype=str).str.replace(layout.decimal, ".")
    numbers = pd.to_numeric(texts, errors="coerce")
    is_counted = len(first) >= MIN_COUNTED and (numbers.diff()[1:] == 1).all()
    is_numbered = [*names] == [*map(str, range(len(names)))]  # by pandas
    if not first or numbers.isna().any() or is_counted or is_numbered:
        return
    line = separator.join(map("x{}".format, range(min(len(names), MAX_NAMED))))
    more = separator + "..." if len(names) > MAX_NAMED else ""
    fix = f"Insert a line of names above, such as {line}{more}; names may not be numbers"
    expected = "names of columns in the first line"
    raise unexpected(f"path={path}", expected, f"the numbers {named(first)}", fix)


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the repeated names of columns, as pandas does: a, a.1."""
    seen, distinct = Counter[str](), list[str]()
    for name in names:
        distinct.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return distinct


def _read_arrays(path: Path) -> pd.DataFrame:
    content = np.load(path)
    arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    native = {name: array.dtype.newbyteorder("=") for name, array in arrays.items()}
    arrays = {name: array.astype(native[name], copy=False) for name, array in arrays.items()}
    matrices = sum(array.ndim == 2 for array in arrays.values())
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        frame = pd.DataFrame(array)
        if array.ndim == 2:
            frame = frame.add_prefix("x" if matrices == 1 else name)
        elif not array.dtype.names:
            frame.columns = [name]
        columns |= {str(name): values.to_numpy() for name, values in frame.items()}
    return pd.DataFrame(columns)


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    **{kind + suffix: _read_csv for kind in (".csv", ".tsv") for suffix in COMPRESSIONS},
    **dict.fromkeys((".parquet", ".pq"), pd.read_parquet),
    **dict.fromkeys((".feather", ".arrow"), pd.read_feather),
    **dict.fromkeys((".npy", ".npz"), _read_arrays),
}
"""Readers by suffix, in lower case."""
