"""Rows of table files in the columns that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from submanifold.common.errors import UserError
from submanifold.common.files import printable, table_name
from submanifold.data.tables.files import list_files, read_table
from submanifold.inference.predictor import Predictor


class TableFiles:
    """Rows of tables at some paths.

    Args:
        paths: CSV, Parquet, Feather, NPY or NPZ files, or folders of them.
        predictor: The predictor of a model of a table.
        only_condition: Whether to read only the columns of a model's condition.

    Attributes:
        frame: The rows, in the columns that the model knows.
        names: The index that pandas wrote, or numbers from 0; with several files ``file:label``.

    Raises:
        UserError: A file cannot be read, or lacks columns of the model.
    """

    unit = "rows"

    def __init__(
        self, paths: Sequence[str | Path], predictor: Predictor, only_condition: bool = False
    ) -> None:
        self.files = list_files(paths)
        self.skipped: list[dict[str, str]] = []
        frame = read_table(self.files)
        index = frame.index
        self.label = "row" if index.nlevels > 1 else table_name(str(index.name or "row"))
        self.names = _labels(index)
        columns, condition = predictor.columns, predictor.condition
        if only_condition and condition is not None:
            frame = frame.drop(columns=[*{*columns.inputs} - {*condition.inputs}], errors="ignore")
            columns = condition
        unnamed = [f"x{number}" for number in range(len(columns.inputs))]
        if condition is None and [*frame] == unnamed:  # of an array: matched by position
            frame = frame.set_axis(list(columns.inputs), axis=1)
        self.frame = columns.check_names(frame).reset_index(drop=True)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.frame)

    def batches(self, size: int) -> Iterator[tuple[range, pd.DataFrame]]:
        """Yield the numbers of rows, and the rows, in batches."""
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            yield rows, self.frame[start : start + size]

    def check_readable(self, count: int) -> None:
        """Raise a UserError if ``count``, the number of rows that were read, is 0."""
        if not count:
            raise UserError(f"{printable(str(self.files[0]))}: expected rows, got none.")


def _labels(index: pd.Index) -> Any:
    """Return labels of rows that spreadsheets do not evaluate."""
    if index.nlevels > 1:
        return [f"{table_name(str(path))}:{label}" for path, label in index]
    if pd.api.types.is_integer_dtype(index.dtype):
        return index.to_numpy()
    escape = table_name if index.dtype in (object, "str") else printable  # -1.5 is no formula
    return [escape(str(label)) for label in index]
