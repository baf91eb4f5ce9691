"""The transformation between rows of a table and the standardized vectors of a model."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError, did_you_mean
from submanifold.data.tables.columns import Column, duplicates, named, to_numbers
from submanifold.data.tables.statistics import Statistics, refuse

if TYPE_CHECKING:
    from submanifold.data.settings import Categorical, GivenKind, Missing, Scale

log = logging.getLogger(__name__)

Table: TypeAlias = "pd.DataFrame | np.ndarray | Sequence[Sequence[float]]"

MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Preprocessor:
    """Maps the rows of a table to standardized vectors, and vectors to rows.

    Quantized columns are dequantized: uniform noise over their step is added, as it is for the
    bytes of images. The noise is determined by the row's values, so that the result for a row does
    not depend on other rows.

    Attributes:
        columns: The columns; of a condition also each category.

    Example:
        >>> table = pd.DataFrame({"age": [31, 45, 45, 27], "city": ["A", "B", "A", "A"]})
        >>> preprocessor = Preprocessor.fit(table, categorical="intervals")
        >>> preprocessor.features
        ('age', 'city')
        >>> x = preprocessor.transform(table)
        >>> x.shape, x.dtype
        ((4, 2), dtype('float32'))
        >>> bool((preprocessor.inverse_transform(x) == table).all(axis=None))
        True
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        table: Table,
        *,
        kinds: Mapping[str, GivenKind] | None = None,
        categorical: Categorical = "refuse",
        missing: Missing = "refuse",
        scale: Scale = "standard",
    ) -> Preprocessor:
        """Find the kind and the standardization of each column.

        For tables larger than memory see :class:`.Statistics`.

        Args:
            table: Training rows: a DataFrame, or an array (N, columns), whose columns are named
                x0, x1, ...
            kinds: See :class:`.Statistics`.
            categorical: See :class:`.Statistics`.
            missing: See :class:`.Statistics`.
            scale: See :class:`.Statistics`.

        Raises:
            UserError: The table has fewer than two rows, or a column cannot be used.
        """
        statistics = Statistics(kinds, categorical, missing, scale)
        statistics.update(as_frame(table))
        return cls(statistics.columns())

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the table's columns, including constant ones."""
        return tuple(self._by_name)

    @cached_property
    def _by_name(self) -> dict[str, list[Column]]:
        """The columns by name; categories of a condition have several entries."""
        found: dict[str, list[Column]] = {}
        for each in self.columns:
            found.setdefault(each.name, []).append(each)
        return found

    @cached_property
    def categories(self) -> dict[str, set[str]]:
        """The categories of the training data by column."""
        return {name: known for name, columns in self._by_name.items()
                if (known := {text for column in columns for text in column.names})}  # fmt: skip

    @cached_property
    def varying(self) -> tuple[Column, ...]:
        """The columns that are coordinates of the model."""
        return tuple(each for each in self.columns if each.kind != "constant")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the model's coordinates, (D,)."""
        return tuple(each.feature for each in self.varying)

    def split(self, names: Collection[str]) -> tuple[Preprocessor, Preprocessor]:
        """Return preprocessors of the other columns, and of those with these names.

        The latter does not dequantize, and has an indicator of each category.
        """
        chosen = [part for each in self.columns if each.name in names for part in each.as_condition]
        others = [each for each in self.columns if each.name not in names]
        return Preprocessor(tuple(others)), Preprocessor(tuple(chosen))

    def transform(self, table: Table, salt: np.ndarray | None = None) -> np.ndarray:
        """Dequantize and standardize rows.

        Args:
            table: A DataFrame, whose columns are found by name, or an array with as many columns as
                the training table. Columns that the model does not know are ignored with a warning.
            salt: Integers (N,) that the noise also depends on. Without it equal rows have equal
                noise; training rows need different noise, so pass their numbers.

        Returns:
            float32 (N, D).

        Raises:
            UserError: Columns are missing, or contain text, infinities or missing values.
        """
        shifted = self._dequantized(table, salt)
        x = np.empty(shifted.shape, np.float32)
        for j, column in enumerate(self.varying):
            x[:, j] = column.standardize(shifted[:, j])
            if column.step is not None:
                # rounding to float32 must not move a value into the next cell
                cell = column.cell(shifted[:, j])
                moved = column.cell(column.restore(x[:, j].astype(np.float64))) != cell
                middle = column.cell_start(cell[moved]) - column.origin + column.step / 2
                x[moved, j] = column.standardize(middle)
        return x

    def inverse_transform(self, x: np.ndarray) -> pd.DataFrame:
        """Map vectors to rows of the table, with its names, units and types.

        Quantized columns are rounded down to their grid; constant columns have their value.

        Args:
            x: Vectors (N, D).
        """
        x = np.asarray(x, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.varying):
            raise UserError(
                f"x: expected an array (N, {len(self.varying)}), got one of shape {x.shape}."
            )
        shifted = {each.feature: each.restore(x[:, j]) for j, each in enumerate(self.varying)}
        found: dict[str, Any] = {}
        for name, own in self._by_name.items():
            column = own[0]
            if column.kind == "constant":
                values: Any = np.full(len(x), column.names[0] if column.names else column.origin)
            elif column.kind == "indicator":
                stacked = np.column_stack([shifted[each.feature] for each in own])
                values = np.concatenate([each.names for each in own])[stacked.argmax(1)]
            elif column.kind == "categorical":
                values = np.array(column.names)[column.cell(shifted[name]).astype(int)]
            elif column.step is not None:
                values = column.cell_start(column.cell(shifted[name]))
            else:
                values = column.origin + shifted[name]
            found[name] = _restore_dtype(values, column.dtype)
        return pd.DataFrame(found)

    def unknown(self, table: Table) -> pd.DataFrame:
        """Return which values of a table are categories that the training data do not have."""
        frame = as_frame(table, self.inputs).reset_index(drop=True)
        return pd.DataFrame({
            name: frame[name].notna() & ~frame[name].astype(str).isin(known)
            for name, known in self.categories.items() if name in frame
        }, frame.index)  # fmt: skip

    def log_det(self, table: Table, salt: np.ndarray | None = None) -> np.ndarray:
        """Compute the log-determinant of :meth:`transform` of each row.

        Added to the model's log-density of the transformed rows it gives the log-density in the
        units of the table: of its dequantized values, and of categories their probability. It is
        -inf for rows with unknown categories.

        Args:
            table: See :meth:`transform`.
            salt: See :meth:`transform`.

        Returns:
            float64 (N,).
        """
        log_det = self._log_slopes(self._dequantized(table, salt))
        return np.where(self.unknown(table).any(axis=1), -np.inf, log_det)

    def log_det_at(self, x: np.ndarray) -> np.ndarray:
        """Compute the log-determinants of :meth:`log_det` from transformed rows x, (N, D)."""
        x = np.asarray(x, np.float64)
        shifted = [each.restore(x[:, j]) for j, each in enumerate(self.varying)]
        return self._log_slopes(np.column_stack(shifted))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable description."""
        default = vars(Column("", "constant", ""))
        described = [
            {name: value for name, value in vars(each).items()
             if name in ("name", "kind", "dtype") or value != default[name]}
            for each in self.columns
        ]  # fmt: skip
        return {"columns": described}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Preprocessor:
        """Rebuild a preprocessor from :meth:`to_dict`."""
        columns = []
        for each in description["columns"]:
            found = dict(each)
            if found.get("levels") is not None:
                found["levels"] = tuple(found["levels"])
            if found.get("categories") is not None:
                found["categories"] = tuple(map(tuple, found["categories"]))
            if found.get("knots") is not None:
                found["knots"] = tuple((float(v), float(s)) for v, s in found["knots"])
            columns.append(Column(**found))
        return cls(tuple(columns))

    def _log_slopes(self, shifted: np.ndarray) -> np.ndarray:
        total = np.zeros(len(shifted))
        for j, column in enumerate(self.varying):
            total += column.log_slope(shifted[:, j])
        return total

    def _dequantized(self, table: Table, salt: np.ndarray | None) -> np.ndarray:
        """Return dequantized values minus the origins, float64 (N, D)."""
        values = self._values(table)
        noise = uniform_by_content(values, salt)
        for j, column in enumerate(self.varying):
            values[:, j] = column.dequantize(column.snap(values[:, j]), noise[:, j])
        return values

    def _values(self, table: Table) -> np.ndarray:
        """Check the columns of a table and return their numbers, float64 (N, D)."""
        frame = self.check_names(as_frame(table, self.inputs))
        values, other = np.empty((len(frame), len(self.varying))), []
        numbers: dict[str, np.ndarray] = {}
        j = 0
        for column in self.columns:
            if column.kind == "constant":
                if _differs(frame, column):
                    other.append(column.name)
                continue
            if column.kind in ("categorical", "indicator"):
                values[:, j] = self._category(frame[column.name], column)
            else:
                numbers[column.name] = values[:, j] = self._numbers(frame[column.name], column)
            j += 1
        fix = "Fill them, leave these rows out, or train with data.missing=median"
        counts = {name: int(np.isnan(column).sum()) for name, column in numbers.items()}
        refuse(counts, "columns", "missing values", fix)
        counts = {name: int(np.isinf(column).sum()) for name, column in numbers.items()}
        refuse(counts, "columns", "infinities", "Correct them, or leave these rows out")
        if other:
            log.warning(
                "columns %s are constant in the training data but not here; they are ignored",
                named(other),
            )
        for name, unknown in self.unknown(frame).items():
            if unknown.any():
                names = sorted(set(frame[str(name)][unknown.to_numpy()].astype(str)))
                log.warning("column %s: the training data have no category %s; its rows are "
                            "anomalies", named([str(name)]), named(names))  # fmt: skip
        return values

    def check_names(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a table, with a warning of unknown columns; raise UserError for missing ones."""
        names = dict.fromkeys(frame.columns)
        needed = dict.fromkeys(each.name for each in self.varying)
        if missing := [name for name in needed if name not in names]:
            raise UserError(
                f"columns: expected the columns of the training table ({named(needed)}), got a "
                f"table without {named(missing)}."
                f"{did_you_mean(missing[0], map(str, names))}"
            )
        if twice := [name for name in duplicates(frame.columns) if name in self._by_name]:
            raise UserError(f"columns: expected one column {named(twice[:1])}, got several.")
        if extra := [name for name in names if name not in self._by_name]:
            log.warning("columns %s are unknown to the model; they are ignored", named(extra))
        return frame

    def _numbers(self, values: pd.Series, column: Column) -> np.ndarray:
        numbers, text = to_numbers(values)
        if text.any():
            row = int(text.argmax())
            first = named([str(values.iloc[row])])
            raise UserError(
                f"columns.{named([column.name])}: expected numbers, got {int(text.sum()):,} other "
                f"values, such as {first} in row {values.index[row]}. Correct them."
            )
        return numbers if column.fill is None else np.where(np.isnan(numbers), column.fill, numbers)

    def _category(self, values: pd.Series, column: Column) -> np.ndarray:
        """Return the numbers of categories, unknown ones as the last, or an indicator."""
        missing = values.isna()
        if missing.any() and column.fill is None:
            raise UserError(
                f"columns.{named([column.name])}: expected categories, got {int(missing.sum()):,} "
                "missing values. Fill them, leave these rows out, or train with "
                "data.missing=median."
            )
        texts = values.astype(object).where(~missing, column.fill).astype(str)
        if column.kind == "indicator":
            return (texts == column.names[0]).to_numpy(np.float64)
        index = pd.Index(column.names).get_indexer(pd.Index(texts))
        return np.where(index < 0, column.high, index)


def as_frame(table: Table, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a DataFrame whose columns have text as names; those of arrays are x0, x1, ...

    Args:
        table: A DataFrame, or an array (N, columns).
        names: Names of an array's columns; their number must match.

    Raises:
        UserError: The array has other dimensions, or another number of columns.
    """
    if isinstance(table, pd.DataFrame):
        return table.set_axis(table.columns.map(str), axis=1)
    array = np.asarray(table)
    if array.ndim != 2:
        raise UserError(
            f"table: expected a DataFrame or an array (rows, columns), got shape {array.shape}."
        )
    if names is None:
        names = [f"x{index}" for index in range(array.shape[1])]
    if array.shape[1] != len(names):
        raise UserError(
            f"columns: expected {len(names)} columns ({named(names)}), got {array.shape[1]}."
        )
    return pd.DataFrame(array, columns=list(names))


def uniform_by_content(values: np.ndarray, salt: np.ndarray | None = None) -> np.ndarray:
    """Draw numbers in (0, 1) that only the values in the same row and its salt determine.

    The generator is SplitMix64 (Steele, Lea & Flood 2014), seeded by a hash of the row.

    Values are rounded to float32, so that a copy of a row in another type has the same noise.

    Args:
        values: float64 (N, D).
        salt: Integers (N,).

    Returns:
        float64 (N, D).
    """
    state = np.zeros(len(values), np.uint64) if salt is None else np.asarray(salt).astype(np.uint64)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32) + np.float32(0)  # equal bits of 0 and -0
    for column in rounded.view(np.uint32).T:
        state = _mix(state ^ column)
    steps = np.arange(1, values.shape[1] + 1, dtype=np.uint64) * GOLDEN
    return ((_mix(state[:, None] + steps) >> np.uint64(12)) + 0.5) * 2.0**-52


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + GOLDEN
    state = (state ^ (state >> np.uint64(30))) * MIX[0]
    state = (state ^ (state >> np.uint64(27))) * MIX[1]
    return state ^ (state >> np.uint64(31))


def _differs(frame: pd.DataFrame, column: Column) -> bool:
    if column.names or column.name not in frame:
        return False
    numbers = to_numbers(frame[column.name].dropna())[0]
    return not bool(((numbers >= column.low) & (numbers <= column.high)).all())


def _restore_dtype(values: np.ndarray, dtype: str) -> Any:
    """Convert values to the type of a column as far as it can hold them."""
    if dtype == "bool":
        return values == "True" if values.dtype.kind == "U" else values >= 0.5
    if dtype.startswith(("int", "uint")) and "[" not in dtype and values.dtype.kind == "f":
        info = np.iinfo(dtype)
        return np.rint(values).clip(info.min, info.max).astype(dtype)
    try:
        return pd.Series(values).astype(dtype).array  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return values
