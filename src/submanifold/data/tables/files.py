"""Files of tables, read as DataFrames."""

import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError, printable, unexpected
from submanifold.common.files import expand_user
from submanifold.data.sources.stores import HIDDEN
from submanifold.data.tables.columns import named

log = logging.getLogger(__name__)

SNIFFED_LINES = 50
SEPARATORS = ",;\t|"
NUMBER = r"(?m)(^|;)-?\d+{}\d+(;|$)"  #: A number with a decimal mark between semicolons.
UNITS = "%$€£¥"  # before or after the numbers of a column that are text
ENCODINGS = "utf-8-sig", "cp1252"  # the second is that of spreadsheets on Windows
COMPRESSIONS = "", ".gz", ".bz2", ".xz"  #: Suffixes of CSV files, which pandas decompresses.


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
    try:
        frame = read(path)
    except (ValueError, OSError, EOFError, csv.Error) as error:  # pa.ArrowInvalid is a ValueError
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
    try:
        return _parse_csv(path, ENCODINGS[0])
    except UnicodeDecodeError:
        log.warning("%s: read as %s, because it is not UTF-8", path.name, ENCODINGS[1])
        return _parse_csv(path, ENCODINGS[1])


def _parse_csv(path: Path, encoding: str) -> pd.DataFrame:
    """Read a CSV file; its separator, its header and its decimal mark are found."""
    first = pd.read_csv(
        path, sep="\0", header=None, dtype=str, nrows=SNIFFED_LINES, quoting=csv.QUOTE_NONE,
        keep_default_na=False, encoding=encoding,
    )  # fmt: skip
    lines = first[0].tolist()
    headers = {mark: next(csv.reader(lines[:1], delimiter=mark)) for mark in SEPARATORS}
    separator, names = max(headers.items(), key=lambda header: len(header[1]))
    options: dict[str, Any] = {"engine": "pyarrow"}  # fast, and rounds correctly
    decimal = "."
    words = [line.split() for line in lines]
    if len(names) == 1 < len(words[0]) and len({*map(len, words)}) == 1:
        separator, names = r"\s+", words[0]
        options = {"engine": "c", "float_precision": "round_trip", "index_col": False}
    names = [name.strip() for name in names]
    numbered = names == [*map(str, range(len(names)))]  # by pandas
    has_header = numbered or pd.to_numeric(pd.Series(names), errors="coerce").isna().any()
    if not has_header:
        log.warning("%s: the first line contains numbers; the columns are x0, x1, ...", path.name)
        names = [f"x{index}" for index in range(len(names))]
    body = "\n".join(lines[1:])
    if separator == ";" and re.search(NUMBER.format(","), body) and not re.search(
        NUMBER.format(r"\."), body
    ):  # fmt: skip
        decimal = ","
    header = 0 if has_header else None
    frame = pd.read_csv(path, sep=separator, names=_distinct(names), header=header,
                        decimal=decimal, encoding=encoding, **options)  # fmt: skip
    for name in frame.select_dtypes("str"):
        frame[name] = _numbers(frame[name].str.strip(), decimal)
    return frame.set_index("").rename_axis(None) if names[0] == "" else frame


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the repeated names of columns, as pandas does: a, a.1."""
    seen, distinct = Counter[str](), list[str]()
    for name in names:
        distinct.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return distinct


def _numbers(texts: pd.Series, decimal: str) -> pd.Series:
    """Return the numbers of a column, if all texts are some with the same currency or percent."""
    thousands, mark = ",." if decimal == "." else ".,"
    digits = rf"\d+|\d{{1,3}}(?:[{thousands}]\d{{3}})+"
    pattern = rf"([-+]?)([{UNITS}]?)\s?({digits})((?:[{mark}]\d+)?)\s?([{UNITS}]?)"
    present = texts.dropna()
    if present.empty or not present.str.fullmatch(pattern).all():
        return texts
    parts = present.str.extract(f"^{pattern}$").fillna("")
    if len(parts[[1, 4]].drop_duplicates()) > 1:
        return texts
    whole = parts[0] + parts[2].str.replace(thousands, "")
    return pd.to_numeric(whole + parts[3].str.replace(mark, ".")).reindex(texts.index)


def _read_arrays(path: Path) -> pd.DataFrame:
    content = np.load(path)
    arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
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
