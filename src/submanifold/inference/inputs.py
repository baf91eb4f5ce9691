"""Read images and rows of tables from files, as inputs of a trained model."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError, printable, table_name, unexpected
from submanifold.common.processes import check_memory, map_in_threads
from submanifold.common.progress import ProgressBar
from submanifold.data.images import SUFFIXES, decode
from submanifold.data.sources.stores import DATABASE, open_store
from submanifold.data.tables.columns import matching
from submanifold.data.tables.files import read_table
from submanifold.inference.predictor import Predictor

log = logging.getLogger(__name__)

BYTES_PER_PIXEL = 9  #: Of an image, and of its coordinates in float32 while they are concatenated.
MANY_ROWS, MANY_BEYOND = 20, 0.1  #: Rows, and their share beyond the training rows, to warn of.


class Inputs(NamedTuple):
    """Images or rows, and their names."""

    events: Any  # images, uint8 (N, channels, size, size), or rows, a DataFrame
    names: Any  # escaped for messages and tables
    label: str  # name of the column of names in tables, such as ``picture``
    members: Sequence[str] = ()  # of images, the names within their folder or zip


def read_images(paths: Sequence[str | Path], data: Mapping[str, Any]) -> Inputs:
    """Read images, which are decoded in threads; unreadable ones are skipped with a warning.

    Paths are image files, folders (searched recursively), zips, or LMDB folders; ``data`` is the
    format of the images (:attr:`.Model.data`). A path without images, no readable one, or too many
    for the memory raise a UserError.
    """
    form = {key: data[key] for key in ("size", "channels", "crop", "margin") if key in data}
    shape = form["channels"], form["size"], form["size"]
    skipped: list[str] = []

    def skip(name: str, reason: str) -> None:
        log.warning("skipped %s (%s)", name, printable(reason))
        skipped.append(f"{name} ({printable(reason)})")

    def read(image: _Image) -> np.ndarray | Exception:
        try:
            return decode(image.read(), **form)
        except Exception as error:  # Pillow raises nearly anything
            return error

    sources = [image for path in paths for image in _find_images(Path(path), skip)]
    check_memory("images", len(sources), BYTES_PER_PIXEL * math.prod(shape))
    images, found = np.empty((len(sources), *shape), np.uint8), list[_Image]()
    with ProgressBar("reading", "images", len(sources)) as progress:
        for source, image in zip(sources, map_in_threads(read, sources), strict=True):
            progress.update()
            if isinstance(image, Exception):
                skip(source.name, f"{type(image).__name__}: {image}")
            else:
                images[len(found)] = image
                found.append(source)
    if not found:
        first = skipped[0] if skipped else "no paths"
        raise UserError(f"No image could be read: {first}.")
    if skipped:
        log.warning("Skipped %d unreadable images.", len(skipped))
    names, members = [image.name for image in found], [image.member for image in found]
    return Inputs(images[: len(found)], names, "picture", members)


class _Image(NamedTuple):
    name: str  # escaped, with the path
    member: str  # name within its folder or zip
    read: Callable[[], Any]


def _find_images(path: Path, skip: Callable[[str, str], None]) -> Iterator[_Image]:
    if not path.exists():
        fix = f"Correct it (current folder: {Path.cwd()})"
        raise unexpected(path, "images, a folder or a zip", "no such file or folder", fix)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        yield _Image(table_name(str(path)), path.name, path.read_bytes)
        return
    if path.is_file() and path.suffix.lower() != ".zip":
        expected = f"a folder, a zip, or a file with one of {', '.join(SUFFIXES)}"
        raise unexpected(path, expected, "another file")
    store = open_store(path)
    if not store.names:
        expected = f"files with one of {', '.join(SUFFIXES)}"
        raise unexpected(path, expected, "none", "Hidden files and folders are ignored")
    in_files = path.is_dir() and not (path / DATABASE).is_file()
    prefix = str(path) + ("/" if in_files else ":")
    for name, reason in store.skipped.items():
        skip(table_name(prefix + name), reason)
    for name in store.names:
        yield _Image(table_name(prefix + name), name, partial(store.image, name))


def read_rows(
    paths: Sequence[str | Path],
    predictor: Predictor,
    only_condition: bool = False,
    identifier: str | None = None,
) -> Inputs:
    """Read rows of tables in the columns that a model knows, or only those of its condition.

    The ``identifier`` is the column of the names, by default that of the training table, if files
    have it; several files are named in the names. A file that cannot be read, has no rows, or lacks
    columns of the model raises a UserError.
    """
    frame = read_table(list(paths))
    if not len(frame):
        raise UserError(f"{paths[0]}: expected rows, got none.")
    usual = predictor.model.data.get("id")
    identifier = identifier or (usual if usual in frame else None)
    if identifier is not None:
        name = matching("--id", [identifier], frame)[0]
        frame = frame.set_index(name, drop=name not in predictor.columns.inputs)
    index = frame.index
    label = "row" if index.nlevels > 1 else table_name(str(index.name or "row"))
    columns, condition = predictor.columns, predictor.condition
    if only_condition and condition is not None:
        frame = frame.drop(columns=[*{*columns.inputs} - {*condition.inputs}], errors="ignore")
        columns = condition
    unnamed = [f"x{number}" for number in range(len(columns.inputs))]
    if condition is None and [*frame] == unnamed:  # of an array: matched by position
        frame = frame.set_axis(list(columns.inputs), axis=1)
    rows = columns.check_names(frame).reset_index(drop=True)
    beyond = columns.beyond(rows)
    for name in beyond.index[(beyond > MANY_BEYOND) & (len(rows) >= MANY_ROWS)]:
        found = columns.description.set_index("column")["found"][name]
        log.warning(
            "column %s: %.0f%% of the rows are beyond those of the training (%s), and "
            "count as anomalous; data.drop leaves a column out of the training",
            table_name(name),
            100 * beyond[name],
            found,
        )
    return Inputs(rows, _row_names(index), label)


def _row_names(index: pd.Index) -> Any:
    """Return labels of rows that spreadsheets do not evaluate."""
    if index.nlevels > 1:
        return [f"{table_name(str(path))}:{label}" for path, label in index]
    if pd.api.types.is_integer_dtype(index.dtype):
        return index.to_numpy()
    escape = table_name if index.dtype in (object, "str") else printable  # -1.5 is no formula
    return [escape(str(label)) for label in index]
