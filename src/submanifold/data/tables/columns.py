"""Columns of a table: what a model needs to know of each, and the conversion of their values."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from pandas.api import types

from submanifold.common.errors import UserError, did_you_mean
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
    def bits(self) -> float:
        """Bits of a training value: log2 of the number of steps, infinite without a step."""
        if self.step is None:
            return math.inf
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
        return (shifted - self.offset) / self.scale

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Invert :meth:`standardize`."""
        return x * self.scale + self.offset

    def log_slope(self, shifted: np.ndarray) -> np.ndarray:
        """Log-derivative of :meth:`standardize`, and by the noise of categories."""
        slope = np.full(len(shifted), -math.log(self.scale))
        if self.kind != "categorical":
            return slope
        left, right = 1 - shifted / TAIL, 1 - (len(self.names) - shifted) / TAIL
        return left.clip(min=0) + right.clip(min=0) + slope

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


class ColumnProblem(Exception):  # noqa: N818
    """What is wrong with a column, and details."""

    def __init__(self, what: str, details: str = ""):
        super().__init__(what, details)


def coerce(values: pd.Series) -> np.ndarray:
    """Convert a column to float64, with NaN for missing values and text.

    Raises:
        ColumnProblem: The column contains dates, times or complex numbers.
    """
    kind = types.infer_dtype(values)
    if kind.startswith(("complex", "date", "period", "time")):
        raise ColumnProblem(kind)
    if not types.is_numeric_dtype(values.dtype):
        values = pd.to_numeric(values.astype(object), errors="coerce")
    return values.to_numpy(np.float64, na_value=np.nan)


def is_text(values: pd.Series) -> bool:
    """Return whether a column has more text than numbers, or pandas' categories."""
    numbers = coerce(values)
    text = np.isnan(numbers) & values.notna()
    is_category = isinstance(values.dtype, pd.CategoricalDtype)
    return is_category or bool(text.sum() > np.isfinite(numbers).sum())


def to_numbers(values: pd.Series) -> np.ndarray:
    """Convert a column to float64, with NaN for missing values.

    Raises:
        ColumnProblem: The column contains something else than finite numbers.
    """
    numbers = coerce(values)
    text = np.isnan(numbers) & values.notna().to_numpy()
    if text.any():
        row = int(text.argmax())
        first = f"{printable(str(values.iloc[row]))!r} in row {values.index[row]}"
        raise ColumnProblem("text among numbers", f" ({text.sum():,}, such as {first})")
    if infinite := int(np.isinf(numbers).sum()):
        raise ColumnProblem("infinities", f" ({infinite:,})")
    return numbers


def named(columns: Iterable[str]) -> str:
    """Write the first five names of columns and the number of the others."""
    names = [printable(str(name)) for name in columns]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def matching(setting: str, patterns: Iterable[str], frame: pd.DataFrame) -> list[str]:
    """Return the columns with names or patterns, in the table's order.

    Raises:
        UserError: There is no column of a name or pattern.
    """
    matches: set[str] = set()
    for pattern in patterns:
        names = [pattern] if pattern in frame else fnmatch.filter(frame.columns, pattern)
        if not names:
            raise UserError(
                f"{setting}: expected columns of the table or patterns of them "
                f"({named(frame.columns)}), got {printable(pattern)}."
                f"{did_you_mean(pattern, frame.columns)}"
            )
        matches.update(names)
    return [name for name in frame if name in matches]
