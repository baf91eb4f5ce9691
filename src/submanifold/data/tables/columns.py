"""Columns of a table: what a model needs to know of each, and their conversion to numbers."""

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import numpy as np
import pandas as pd
from pandas.api import types
from pydantic import Field

from submanifold.common.errors import UserError, did_you_mean, printable, unexpected

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Kind = Literal["continuous", "quantized", "constant", "categorical", "indicator", "ignored"]

MISSING = "missing"  #: Category of missing values.
MAX_EXACT = 2.0**53  #: Up to it float64 represents all integers.
MAX_NAMED = 5  #: Number of columns that a message names.
SNAP = 1e-3  #: Largest distance from the grid at which a value counts as on it, in steps.
TAIL = 0.2  #: Part of the outer intervals of categories that becomes an exponential tail.
FIRST_DATE, LAST_DATE = -62135596800.0, 253402300799.0  #: Seconds of the years 1 to 9999.
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
TEXT_MISSING = f'"{MISSING}"'  #: Category of the text "missing" in columns with missing values.


@dataclass(frozen=True)
class Column:
    r"""A column of the table, or one category of a condition, and its standardization.

    A value v becomes :math:`x = (v - \text{origin} + \text{step} \cdot w - \text{offset}) /
    \text{scale}`, where w is uniform in [0, 1) for quantized columns, and absent for continuous
    ones. The origin is subtracted first, in float64, so that small differences of large values are
    kept. Category k becomes a number of an interval (:func:`to_line`), and a date the seconds since
    1970.

    Missing values of numbers have a second column of the same name, the flag, with the categories
    present and missing; a missing number becomes noise from N(0, 1) in place of x.
    """

    name: str
    #: ``continuous``; ``quantized``: values on a grid; ``constant``: no coordinate of the model;
    #: ``ignored``: no column of the model; ``categorical``: names; ``indicator``: of one category,
    #: in a condition.
    kind: Kind
    dtype: str  #: Type of the table's column.
    low: Finite = 0.0  #: Smallest training value.
    high: Finite = 0.0  #: Largest training value.
    origin: Finite = 0.0
    offset: Finite = 0.0  #: Mean of the dequantized training values minus the origin.
    scale: Positive = 1.0  #: Standard deviation of the dequantized training values.
    step: Positive | None = None  #: Difference between neighboring values of a quantized column.
    #: Number of decimals of the multiples of a step, or of the seconds of dates.
    decimals: int | None = None
    #: Values that are no multiples of a step, which is then the smallest difference.
    levels: tuple[float, ...] | None = None
    #: Names of categories and their shares of the training rows, the largest first.
    categories: Annotated[tuple[tuple[str, float], ...], Field(min_length=1)] | None = None
    dates: str | None = None  #: Format of dates as text; empty for pandas' types of dates.
    #: What becomes of missing values: an error; noise; in a condition the mean; a category.
    missing: Literal["refused", "noise", "mean", "category"] = "refused"
    texts: tuple[str, ...] = ()  #: Text among numbers, a missing value, the most frequent first.
    text_share: float = 0.0  #: Share of the training rows with such text.
    is_flag: bool = False  #: Whether it says where the values of the other column are missing.
    reason: str = ""  #: Why the column is ignored.

    @property
    def feature(self) -> str:
        """Name of the coordinate: ``age``, ``age=missing``, or of an indicator ``city=Paris``."""
        if self.is_flag:
            return f"{self.name}={MISSING}"
        return f"{self.name}={self.names[0]}" if self.kind == "indicator" else self.name

    @property
    def names(self) -> list[str]:
        """Names of the categories."""
        return [name for name, _ in self.categories or ()]

    @property
    def bits(self) -> float:
        """Bits of a training value: log2 of the number of steps, infinite without a step."""
        if self.step is None:
            return math.inf
        return math.log2(len(self.levels or ()) or round((self.high - self.low) / self.step) + 1)

    @property
    def as_condition(self) -> "list[Column]":
        """The columns of a condition: without dequantization, an indicator for each category."""
        if self.kind != "categorical":
            missing = "mean" if self.missing == "noise" else self.missing
            return [replace(self, step=None, missing=missing)]
        return [
            replace(
                self,
                kind="indicator",
                step=None,
                categories=((name, share),),
                offset=share,
                scale=math.sqrt(share * (1 - share)),
            )
            for name, share in self.categories or ()
            if name == MISSING or not self.is_flag
        ]

    def snap(self, values: np.ndarray) -> np.ndarray:
        """Subtract the origin, and move values to the grid that they are close to."""
        shifted = values - self.origin
        if self.step is None or self.levels is not None or self.kind == "categorical":
            return shifted
        on_grid = np.rint(shifted / self.step) * self.step
        return np.where(abs(shifted - on_grid) < SNAP * self.step, on_grid, shifted)

    def dequantize(self, snapped: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Add noise in (0, 1) to values minus the origin."""
        if self.kind == "categorical":
            return to_line(snapped, noise, len(self.names))
        return snapped if self.step is None else snapped + self.step * noise

    def standardize(self, shifted: np.ndarray) -> np.ndarray:
        """Map dequantized values minus the origin to standard units."""
        return (shifted - self.offset) / self.scale

    def transform(self, shifted: np.ndarray) -> np.ndarray:
        """Map dequantized values minus the origin to float32, without a change of their cells."""
        x = self.standardize(shifted).astype(np.float32)
        if self.step is not None:
            cell = self.cell(shifted)
            moved = self.cell(self.restore(x.astype(np.float64))) != cell
            middle = self.cell_start(cell[moved]) - self.origin + self.step / 2
            x[moved] = self.standardize(middle)
        return x

    def inverse_transform(self, x: np.ndarray) -> np.ndarray:
        """Map standardized numbers to numbers on the grid of the column, or names of categories."""
        shifted = self.restore(x)
        if self.step is None:
            return self.origin + shifted
        if self.kind == "categorical":
            return self.without_missing(np.array(self.names)[self.cell(np.nan_to_num(shifted))])
        return self.cell_start(self.cell(shifted))

    def without_missing(self, names: np.ndarray) -> np.ndarray:
        """Return names of categories with None in place of missing values."""
        if self.missing != "category":
            return names
        values = names.astype(object)
        values[names == MISSING] = None
        values[names == TEXT_MISSING] = MISSING
        return values

    def categories_of(self, values: pd.Series) -> pd.Series:
        """Return the names of the categories of values, which training rows may not have."""
        is_missing = values.isna().to_numpy()
        names = values.astype(object).where(~is_missing, MISSING).astype(str)
        if self.missing == "category":
            names = names.mask((names == MISSING) & ~is_missing, TEXT_MISSING)
        return names

    @property
    def cutoff(self) -> float:
        """Smallest dequantized value of a flag that says missing; an indicator is 0 or 1."""
        return 0.5 if self.kind == "indicator" else 1.0

    def restore_dtype(self, values: np.ndarray) -> Any:
        """Convert values to the type of the table's column, and seconds to dates."""
        if self.dates is not None:
            return self._restore_dates(values)
        if self.dtype in ("bool", "boolean"):
            is_number = values.dtype.kind in "bif"
            booleans = pd.Series(values >= 0.5 if is_number else values == "True")
            return booleans.mask(pd.isna(values)) if self.missing == "category" else booleans
        if self.dtype.startswith("timedelta"):
            return pd.to_timedelta(values, unit="s")
        is_integer = self.dtype.startswith(("int", "uint")) and "[" not in self.dtype
        if is_integer and values.dtype.kind == "f":
            info = np.iinfo(self.dtype)
            largest = np.nextafter(float(info.max) + 1, 0)  # the largest integer may be rounded up
            return np.rint(values).clip(info.min, largest).astype(self.dtype)
        if values.dtype.kind == "f" and not types.is_numeric_dtype(self.dtype):
            return values  # of text, such as numbers and "?"
        try:
            return pd.Series(values).astype(self.dtype).array  # type: ignore[call-overload]
        except (TypeError, ValueError):
            return values

    def _restore_dates(self, seconds: np.ndarray) -> pd.Series:
        """Convert seconds since 1970 to dates of the column's type and format."""
        decimals = 0 if self.decimals is None else min(self.decimals, 6)
        rounded = np.round(seconds.clip(FIRST_DATE, LAST_DATE), decimals)
        microseconds = np.rint(rounded * 10**6).astype("datetime64[us]")
        times = pd.Series(microseconds).dt.tz_localize("UTC")
        if self.dates:
            return times.dt.strftime(self.dates)
        if not self.dtype.startswith("datetime64"):
            return times.dt.tz_localize(None)  # of objects, such as datetime.date
        is_zoned = "," in self.dtype
        times = times if is_zoned else times.dt.tz_localize(None)
        try:
            return times.astype(cast(Any, self.dtype))
        except pd.errors.OutOfBoundsDatetime:
            return times

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Invert :meth:`standardize`."""
        return x * self.scale + self.offset

    def log_weight(self, shifted: np.ndarray) -> np.ndarray:
        """Minus the log-density of dequantized values given the values, 0 except of categories."""
        if self.kind != "categorical":
            return np.zeros(len(shifted))
        left, right = 1 - shifted / TAIL, 1 - (len(self.names) - shifted) / TAIL
        return left.clip(min=0) + right.clip(min=0)

    def floor(self, shifted: np.ndarray) -> np.ndarray:
        """Invert :meth:`dequantize`."""
        if self.step is None:
            return shifted
        cell = self.cell(shifted)
        is_number = self.kind == "categorical"
        return cell.astype(float) if is_number else self.cell_start(cell) - self.origin

    def cell(self, shifted: np.ndarray) -> np.ndarray:
        """Return the index of the grid's value below each value minus the origin."""
        if self.kind == "categorical":
            return np.floor(shifted).clip(0, len(self.names) - 1).astype(int)
        if self.levels is None:
            return np.floor(shifted / self.step)
        index = np.searchsorted(np.array(self.levels) - self.origin, shifted, "right") - 1
        return index.clip(0, len(self.levels) - 1)

    def cell_start(self, cell: np.ndarray) -> np.ndarray:
        """Return the grid's value at an index."""
        if self.levels is not None:
            return np.array(self.levels)[cell]
        values = self.origin + cell * self.step
        return values if self.decimals is None else np.round(values, self.decimals)


def to_line(category: np.ndarray, noise: np.ndarray, count: int) -> np.ndarray:
    r"""Map categories 0, ..., count - 1 and noise in (0, 1) to numbers.

    Category k becomes a number z of :math:`[k, k + 1)`, uniform noise of the dequantization. The
    first and the last interval extend to infinity: their outer :math:`\tau` (:data:`TAIL`) is
    mapped to an exponential tail. With the density q of z, a density p on the line gives

    .. math:: E_q[p(z) / q(z)] = \int_{I_k} p(z)\, dz,

    the probability of the category, and these sum to one (compare the argmax surjections of
    Hoogeboom et al. 2021, which need a coordinate for each category).

    Example:
        >>> to_line(np.array([0, 1, 2]), np.array([0.5, 0.5, 1 - 1e-4]), 3).round(1)
        array([0.5, 1.5, 4.3])
    """
    z = category + noise
    return z + _beyond(count - z) - _beyond(z)


def _beyond(distance: np.ndarray) -> np.ndarray:
    """Return how far a distance from the outer end is moved outwards; 0 outside of the tail."""
    inside = distance.clip(2.0**-40, TAIL)  # rounding may make it 0
    return inside - TAIL * (1 + np.log(inside / TAIL))


class ColumnProblem(ValueError):  # noqa: N818
    """What is wrong with the values of a column."""

    def __init__(self, what: str, column: object) -> None:
        super().__init__(f"{what} in {column}")
        self.what, self.column = what, str(column)


class TableError(UserError):
    """Columns cannot be used."""

    def __init__(self, problems: list[ColumnProblem], fix: str) -> None:
        columns: dict[str, list[str]] = {}
        for problem in problems:
            columns.setdefault(problem.what, []).append(problem.column)
        text = "; ".join(f"{what} in {named(names)}" for what, names in columns.items())
        super().__init__(unexpected("columns", "finite numbers", text, fix).message)


def to_numbers(values: pd.Series, dates: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Convert a column to float64, with NaN for missing values, text and infinities.

    Dates become seconds since 1970. Also returns a mask of the text and infinities.
    """
    is_value = values.notna().to_numpy()
    if dates is not None:
        form = dates if types.infer_dtype(values) == "string" and dates else None
        times = pd.to_datetime(values, format=form, errors="coerce", utc=True)
        count = times.astype("int64").astype(np.float64)
        values = (count / PER_SECOND[times.dt.unit]).where(times.notna())
    elif types.is_timedelta64_dtype(values.dtype):
        values = values.dt.total_seconds()
    elif not types.is_numeric_dtype(values.dtype):
        values = pd.to_numeric(values.astype(object), errors="coerce")
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    return numbers, np.isnan(numbers) & is_value


def named(columns: Iterable[str]) -> str:
    """Write the first five names of columns and the number of the others."""
    names = [printable(str(name)) for name in columns]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def matching(setting: str, patterns: Iterable[str], frame: pd.DataFrame) -> list[str]:
    """Return the columns with names or patterns, in the table's order; UserError if none has."""
    matches: set[str] = set()
    for pattern in patterns:
        names = [pattern] if pattern in frame else fnmatch.filter(frame.columns, pattern)
        if not names:
            expected = f"columns of the table or patterns of them ({named(frame.columns)})"
            hint = did_you_mean(pattern, frame.columns)
            raise unexpected(setting, expected, printable(pattern), hint=hint)
        matches.update(names)
    return [name for name in frame if name in matches]
