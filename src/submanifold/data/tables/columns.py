"""Columns of a table: what a model needs to know of each, and the conversion of their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from pandas.api import types

from submanifold.common.files import printable

Kind = Literal["continuous", "quantized", "constant", "categorical", "indicator"]

MAX_NAMED = 5
"""Number of columns that a message names."""
SNAP = 1e-3
"""Largest distance from the grid at which a value counts as on it, in steps."""
TAIL = 0.2
"""Part of the outer intervals of categories that becomes an exponential tail."""


@dataclass(frozen=True)
class Column:
    r"""A column of the table, or one category of a condition, and its standardization.

    A value v becomes :math:`x = (v - \text{origin} + \text{step} \cdot w - \text{offset}) /
    \text{scale}`, where w is uniform in [0, 1) for quantized columns, and absent for continuous
    ones. The origin is subtracted first, in float64, so that small differences of large values are
    kept. Category k becomes a number of an interval (:func:`to_line`).

    Attributes:
        kind: ``continuous``; ``quantized``: values on a grid; ``constant``: no coordinate of the
            model; ``categorical``: names; ``indicator``: of one category, in a condition.
        dtype: Type of the table's column.
        low: Smallest training value.
        high: Largest training value.
        offset: Mean of the dequantized training values minus the origin.
        scale: Standard deviation of the dequantized training values.
        step: Difference between neighboring values of a quantized column.
        decimals: Number of decimals of the multiples of a step.
        levels: Values of a quantized column that are no multiples of a step, which is then the
            smallest difference.
        knots: Pairs of a value minus the origin and its normal score, increasing, between which the
            transformation is linear (``scale=quantile``).
        categories: Names of categories and their shares of the training rows, the largest first.
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
        """Name of the model's coordinate: ``age``, or of an indicator ``city=Paris``."""
        return f"{self.name}={self.names[0]}" if self.kind == "indicator" else self.name

    @property
    def names(self) -> list[str]:
        """Names of the categories."""
        return [name for name, _ in self.categories or ()]

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
        values, scores, slopes = self._pieces
        below, above = (shifted - values[0]).clip(max=0), (shifted - values[-1]).clip(min=0)
        return np.interp(shifted, values, scores) + slopes[0] * below + slopes[-1] * above

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Invert :meth:`standardize`."""
        if self.knots is None:
            return x * self.scale + self.offset
        values, scores, slopes = self._pieces
        below, above = (x - scores[0]).clip(max=0), (x - scores[-1]).clip(min=0)
        return np.interp(x, scores, values) + below / slopes[0] + above / slopes[-1]

    def log_slope(self, shifted: np.ndarray) -> np.ndarray:
        """Log-derivative of :meth:`standardize`, and by the noise of categories."""
        if self.kind == "categorical":
            left, right = 1 - shifted / TAIL, 1 - (len(self.names) - shifted) / TAIL
            return left.clip(min=0) + right.clip(min=0) - math.log(self.scale)
        if self.knots is None:
            return np.full(len(shifted), -math.log(self.scale))
        values, _, slopes = self._pieces
        return np.log(slopes[np.searchsorted(values, shifted, "right")])

    @property
    def _pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values and scores of the knots, and the slopes before, between and after them.

        The outer slopes are those of the next segment, at most the mean slope.
        """
        values, scores = np.array(self.knots).T
        slopes = np.diff(scores) / np.diff(values)
        mean = (scores[-1] - scores[0]) / (values[-1] - values[0])
        outer = np.minimum(mean, slopes[[0, -1]])
        return values, scores, np.concatenate([outer[:1], slopes, outer[1:]])

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
            return np.floor(shifted).clip(0, len(self.names) - 1)
        if self.levels is None:
            return np.floor(shifted / self.step)
        index = np.searchsorted(np.array(self.levels) - self.origin, shifted, "right") - 1
        return index.clip(0, len(self.levels) - 1)

    def cell_start(self, cell: np.ndarray) -> np.ndarray:
        """Return the grid's value at an index."""
        assert self.step is not None
        if self.levels is not None:
            return np.array(self.levels)[cell]
        values = self.origin + cell * self.step
        return values if self.decimals is None else np.round(values, self.decimals)


class ColumnProblem(Exception):  # noqa: N818
    """What is wrong with a column, and details."""


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


def to_numbers(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Convert a column to float64, with NaN for missing values.

    Returns:
        The numbers, and a mask of the values that are neither numbers nor missing.

    Raises:
        ColumnProblem: The column contains dates, complex numbers, or nested values.
    """
    dtype = values.dtype
    if types.is_complex_dtype(dtype):
        raise ColumnProblem("complex numbers")
    if types.is_bool_dtype(dtype) or types.is_numeric_dtype(dtype):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        return numbers, np.zeros(len(numbers), bool)
    if types.infer_dtype(values).startswith(("date", "time")):
        raise ColumnProblem("dates")
    coerced = pd.to_numeric(values.astype(object), errors="coerce")
    numbers = coerced.to_numpy(np.float64, na_value=np.nan)
    text = np.isnan(numbers) & values.notna().to_numpy()
    if text.any() and types.is_list_like(values.iloc[int(text.argmax())]):
        raise ColumnProblem("nested values")
    return numbers, text


def check_finite(values: pd.Series, numbers: np.ndarray, text: np.ndarray) -> None:
    """Raise a :class:`ColumnProblem` if the result of :func:`to_numbers` has text or infinities."""
    if text.any():
        row = int(text.argmax())
        first = f"{printable(str(values.iloc[row]))!r} in row {values.index[row]}"
        raise ColumnProblem("text among numbers", f" ({text.sum():,}, such as {first})")
    if infinite := int(np.isinf(numbers).sum()):
        raise ColumnProblem("infinities", f" ({infinite:,})")


def named(columns: Iterable[str]) -> str:
    """Write the first five names of columns and the number of the others."""
    names = [printable(str(name)) for name in columns]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def dropping(columns: Sequence[str]) -> str:
    """Write the setting that leaves columns out."""
    more = "|..." if len(columns) > MAX_NAMED else ""
    names = "|".join(map(printable, columns[:MAX_NAMED])) + more
    return f"data.drop={names}" if names.isalnum() else f"data.drop='{names}'"
