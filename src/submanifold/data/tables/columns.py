"""Columns of a table: what a model needs to know of each, and the conversion of their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from pandas.api import types

from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.data.tables.categories import from_line, log_slope, to_line

Kind = Literal["continuous", "quantized", "constant", "categorical", "indicator"]

MAX_NAMED = 5
"""Number of columns that a message names."""
SNAP = 1e-3
"""Largest distance from the grid at which a value counts as on it, in steps."""


@dataclass(frozen=True)
class Column:
    r"""A column of the table, or one category of a condition, and its standardization.

    A value v becomes :math:`x = (v - \text{origin} + \text{step} \cdot w - \text{offset}) /
    \text{scale}`, where w is uniform in [0, 1) for quantized columns, and absent for continuous
    ones. The origin is subtracted first, in float64, so that small differences of large values are
    kept. Categories become numbers by :mod:`.categories`.

    Attributes:
        name: Name of the table's column.
        kind: ``continuous``; ``quantized``: multiples of a step; ``constant``: not a coordinate of
            the model; ``categorical``: names; ``indicator``: 1 for rows of a category, and 0 for
            others, in a condition.
        dtype: Type of the table's column.
        low: Smallest training value.
        high: Largest training value.
        origin: The value that is subtracted first.
        offset: Mean of the dequantized training values minus the origin.
        scale: Standard deviation of the dequantized training values.
        step: Difference between neighboring values of a quantized column.
        decimals: Number of decimals of a quantized column.
        levels: Values of a quantized column that are not multiples of a step; the step is then the
            smallest difference.
        knots: Pairs of a value minus the origin and its normal score, increasing, between which the
            transformation is linear (``scale=quantile``).
        categories: Names of categories and their shares of the training rows, the largest first;
            of an indicator one.
        fill: Replaces missing values; None refuses them.
    """

    name: str
    kind: Kind
    dtype: str
    low: float = 0.0
    high: float = 0.0
    origin: float = 0.0
    offset: float = 0.0
    scale: float = 1.0
    step: float | None = None
    decimals: int | None = None
    levels: tuple[float, ...] | None = None
    knots: tuple[tuple[float, float], ...] | None = None
    categories: tuple[tuple[str, float], ...] | None = None
    fill: float | str | None = None

    @property
    def feature(self) -> str:
        """Name of the model's coordinate: ``age``, or ``city=Paris`` for an indicator."""
        return f"{self.name}={self.names[0]}" if self.kind == "indicator" else self.name

    @property
    def names(self) -> list[str]:
        """Names of the categories."""
        return [name for name, _ in self.categories or ()]

    @property
    def center(self) -> float:
        """Mean of the dequantized training values."""
        return self.origin + self.offset

    @property
    def bits(self) -> float | None:
        """Bits of a training value: log2 of the number of steps; None for continuous columns."""
        if self.step is None:
            return None
        return math.log2(len(self.levels or ()) or round((self.high - self.low) / self.step) + 1)

    @property
    def as_condition(self) -> list[Column]:
        """The columns of a condition: without dequantization, an indicator for each category."""
        if self.kind != "categorical":
            return [replace(self, step=None)]
        return [replace(self, kind="indicator", step=None, categories=((name, share),),
                        offset=share, scale=math.sqrt(share * (1 - share)))
                for name, share in self.categories or ()]  # fmt: skip

    def dequantize(self, shifted: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Add noise in (0, 1) to the values minus the origin."""
        if self.kind == "categorical":
            return to_line(shifted, noise, len(self.names))
        return shifted if self.step is None else shifted + self.step * noise

    def standardize(self, shifted: np.ndarray) -> np.ndarray:
        """Map dequantized values minus the origin to standard units."""
        if self.knots is None:
            return (shifted - self.offset) / self.scale
        (values, scores), (left, right) = np.array(self.knots).T, self._outer_slopes
        below, above = (shifted - values[0]).clip(max=0), (shifted - values[-1]).clip(min=0)
        return np.interp(shifted, values, scores) + left * below + right * above

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Invert :meth:`standardize`."""
        if self.knots is None:
            return x * self.scale + self.offset
        (values, scores), (left, right) = np.array(self.knots).T, self._outer_slopes
        below, above = (x - scores[0]).clip(max=0), (x - scores[-1]).clip(min=0)
        return np.interp(x, scores, values) + below / left + above / right

    def log_slope(self, shifted: np.ndarray) -> np.ndarray:
        """Log-derivative of :meth:`standardize`, and by the noise of categories."""
        if self.kind == "categorical":
            return log_slope(shifted, len(self.names)) - math.log(self.scale)
        if self.knots is None:
            return np.full(len(shifted), -math.log(self.scale))
        (values, scores), (left, right) = np.array(self.knots).T, self._outer_slopes
        slopes = np.array([left, *(np.diff(scores) / np.diff(values)), right])
        return np.log(slopes[np.searchsorted(values, shifted, "right")])

    @property
    def _outer_slopes(self) -> tuple[float, float]:
        """Slopes beyond the first and the last knot: of the next segment, at most the mean."""
        values, scores = np.array(self.knots).T
        slopes = np.diff(scores) / np.diff(values)
        mean = (scores[-1] - scores[0]) / (values[-1] - values[0])
        return float(min(mean, slopes[0])), float(min(mean, slopes[-1]))

    def snap(self, values: np.ndarray) -> np.ndarray:
        """Subtract the origin, and remove rounding errors of values on the grid."""
        shifted = values - self.origin
        if self.step is None or self.levels is not None:
            return shifted
        on_grid = np.rint(shifted / self.step) * self.step
        return np.where(abs(shifted - on_grid) < SNAP * self.step, on_grid, shifted)

    def cell(self, shifted: np.ndarray) -> np.ndarray:
        """Return the index of the grid's value below each value minus the origin."""
        assert self.step is not None
        if self.kind == "categorical":
            return from_line(shifted, len(self.names))
        if self.levels is None:
            return np.floor(shifted / self.step)
        found = np.searchsorted(np.array(self.levels) - self.origin, shifted, "right") - 1
        return found.clip(0, len(self.levels) - 1)

    def cell_start(self, cell: np.ndarray) -> np.ndarray:
        """Return the grid's value at an index."""
        assert self.step is not None
        if self.levels is not None:
            return np.array(self.levels)[cell]
        values = self.origin + cell * self.step
        return values if self.decimals is None else np.round(values, self.decimals)


def to_numbers(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Convert a column to float64, with NaN for missing values.

    Returns:
        The numbers, and a mask of the values that are neither numbers nor missing.

    Raises:
        UserError: The column contains dates, complex numbers, or nested values.
    """
    dtype = values.dtype
    if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        raise UserError(
            f"columns.{printable(str(values.name))}: expected numbers or text, got dates "
            f"({dtype}). Convert them to numbers, such as days since the first date, or leave "
            f"the column out with {dropping([str(values.name)])}."
        )
    if types.is_complex_dtype(dtype):
        raise UserError(
            f"columns.{printable(str(values.name))}: expected real numbers, got complex ones. "
            "Store real and imaginary parts as two columns."
        )
    if types.is_bool_dtype(dtype) or types.is_numeric_dtype(dtype):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        return numbers, np.zeros(len(numbers), bool)
    found = pd.to_numeric(values.astype(object), errors="coerce")
    numbers = found.to_numpy(np.float64, na_value=np.nan)
    text = np.isnan(numbers) & values.notna().to_numpy()
    if text.any() and types.is_list_like(first := values.iloc[int(text.argmax())]):
        raise UserError(
            f"columns.{printable(str(values.name))}: expected numbers or text, got nested values "
            f"({type(first).__name__}). Write one column for each element, or drop the column."
        )
    return numbers, text


def named(columns: Iterable[str]) -> str:
    """Write the first five names of columns and the number of the others."""
    names = [printable(str(each)) for each in columns]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def dropping(columns: Sequence[str]) -> str:
    """Write the setting that leaves columns out."""
    more = "|..." if len(columns) > MAX_NAMED else ""
    names = "|".join(map(printable, columns[:MAX_NAMED])) + more
    return f"data.drop={names}" if names.isalnum() else f"data.drop='{names}'"


def duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    seen: set[str] = set()
    return list(dict.fromkeys(each for each in names if each in seen or seen.add(each)))  # type: ignore[func-returns-value]
