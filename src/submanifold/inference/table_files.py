"""Read the rows of table files in the columns that a model was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError
from submanifold.common.files import printable, table_name
from submanifold.common.processes import check_memory
from submanifold.data.arrays import context_of_array, with_context
from submanifold.data.images import SUFFIXES
from submanifold.data.tables.files import UNNAMED, TableFile, explained, list_files, open_files
from submanifold.inference.tables import columns_of, condition_of, preprocessor_of, to_events
from submanifold.models import Model


class TableFiles:
    """Rows of tables at some paths, in chunks of bounded memory.

    Args:
        paths: CSV, Parquet, Feather, NPY or NPZ files, or folders of them.
        model: A model of a table.
        only_condition: Whether to read only the columns of a model's condition.

    Attributes:
        unit: What is counted, ``rows``.
        label: Name of the column that identifies a row: that of the index, or ``row``.
        names: The labels of the rows: the index that pandas wrote, or numbers from 0; with several
            files ``file:label``.
        files: The files.
        skipped: Always empty: rows that cannot be used are an error.

    Raises:
        UserError: A file cannot be read, or lacks columns of the model.
    """

    unit = "rows"

    def __init__(
        self, paths: Sequence[str | Path], model: Model, only_condition: bool = False
    ) -> None:
        for path in paths:
            if Path(path).suffix.lower() in SUFFIXES:
                raise UserError(
                    f"{printable(str(path))}: expected a table, got an image: the model was "
                    "trained on a table. Use a model of images."
                )
        self.model, self._condition = model, condition_of(model)
        self._only_condition = only_condition
        self.files = list_files([str(path) for path in paths])
        self.tables = open_files(self.files)
        self.skipped: list[dict[str, str]] = []
        self._columns = self._choose()
        labels = [_labels(table) for table in self.tables]
        self.names: Any = labels[0] if len(labels) == 1 else _Names(self.files, labels)
        self.label = "row"
        index = self.tables[0].index
        if len(labels) == 1 and index and not index.startswith(UNNAMED):
            self.label = table_name(index)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.names)

    def batches(self, size: int, first: int = 0) -> Iterator[tuple[range, pd.DataFrame]]:
        """Read the rows from number ``first`` on in batches of ``size``.

        Yields:
            Numbers of the rows, and the rows.
        """
        start, rest = 0, None
        for chunk in self._chunks():
            rows = chunk.iloc[max(0, first - start) :]
            number = max(start, first) - (0 if rest is None else len(rest))
            start += len(chunk)
            if rows.empty:
                continue
            rows = rows if rest is None else pd.concat([rest, rows])
            whole = len(rows) // size * size
            for begin in range(0, whole, size):
                yield range(number + begin, number + begin + size), rows.iloc[begin : begin + size]
            rest = rows.iloc[whole:] if whole < len(rows) else None
        if rest is not None:
            yield range(start - len(rest), start), rest

    def read(self, bytes_per_row: int = 0) -> tuple[list[Any], np.ndarray]:
        """Read all rows as standardized vectors.

        Args:
            bytes_per_row: Memory per row needed later.

        Returns:
            Labels and float32 vectors (N, D).
        """
        dim = self.model.event_dim
        check_memory("rows", len(self), 4 * dim + bytes_per_row)
        parts = [to_events(self.model, chunk) for chunk in self._chunks()]
        if not parts:
            return list(self.names), np.empty((0, dim), np.float32)
        contexts = [each for part in parts if (each := context_of_array(part)) is not None]
        context = np.concatenate(contexts) if contexts else None
        return list(self.names), with_context(np.concatenate(parts), context)

    def check_readable(self, count: int) -> None:
        """Raise a UserError if ``count``, the number of rows that were read, is 0."""
        if not count:
            raise UserError(f"{printable(str(self.files[0]))}: expected rows, got none.")

    def _choose(self) -> dict[str, str]:
        """Map the columns to read to those of the model; check them before long work.

        Columns without names, those of arrays, are matched by position, but not if the model has a
        condition, whose positions it does not know.
        """
        known, columns = self.tables[0].columns, columns_of(self.model)
        if self._only_condition and self._condition is not None:
            described = preprocessor_of(self.model).inputs
            known = tuple(name for name in known if name not in described)
            columns = self._condition
        inputs, is_unnamed = columns.inputs, list(known) == [f"x{n}" for n in range(len(known))]
        if is_unnamed and len(known) == len(inputs) and self._condition is None:
            return dict(zip(known, inputs, strict=True))
        columns.check_names(pd.DataFrame({name: [] for name in known}, dtype=float))
        return {name: name for name in known if name in inputs}

    def _chunks(self) -> Iterator[pd.DataFrame]:
        for table in self.tables:
            with explained(table.path):
                for chunk in table.chunks(list(self._columns)):
                    yield chunk.set_axis(list(self._columns.values()), axis=1)


class _Names(Sequence[str]):
    """Labels of the rows of several files, computed on demand."""

    def __init__(self, files: Sequence[Path], labels: Sequence[Any]) -> None:
        self._files, self._labels, self._ends = files, labels, np.cumsum([*map(len, labels)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        file = int(np.searchsorted(self._ends, index, "right"))
        first = self._ends[file - 1] if file else 0
        return f"{table_name(str(self._files[file]))}:{self._labels[file][index - first]}"


def _labels(table: TableFile) -> Any:
    """Return the index of a file (an array), or the numbers of its rows."""
    with explained(table.path):
        if table.index is None:
            return range(sum(len(chunk) for chunk in table.chunks(table.columns[:1])))
        parts = [chunk[table.index].to_numpy() for chunk in table.chunks([table.index])]
    labels = np.concatenate(parts) if parts else np.empty(0, int)
    if labels.dtype.kind not in "iu":
        escape = table_name if labels.dtype.kind == "O" else printable  # -1.5 is no formula
        labels = np.array([escape(str(each)) for each in labels], object)
    return labels
