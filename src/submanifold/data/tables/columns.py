"""Columns of a table: their kinds, what a model needs to know of each, and their conversion."""

import fnmatch
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types
from pandas.tseries.api import guess_datetime_format

from submanifold.common.errors import UserError, did_you_mean, printable, unexpected
from submanifold.data.fields import Categorical, ColumnKind, Missing, Scale

Kind = Literal["continuous", "quantized", "constant", "categorical", "indicator"]

MAX_NAMED = 5  #: Number of columns that a message names.
SNAP = 1e-3  #: Largest distance from the grid at which a value counts as on it, in steps.
TAIL = 0.2  #: Part of the outer intervals of categories that becomes an exponential tail.
MAX_STEPS, MAX_DECIMALS = 2**16, 9
MAX_LEVELS, MIN_REPEATS = 256, 10
MAX_CATEGORIES = 256
PREFIX = 1000  #: First values of a column, which rule out most steps of long columns.
TOLERANCE, MAX_TOLERANCE = 4.0, 0.01
"""Rounding errors of a value that is a multiple of a step: units of the last place, steps."""
PRECISIONS = {"float16": 2.0**-11, "float32": 2.0**-24}
"""Relative rounding errors of types, others than that of float64."""
MAX_ROUNDING = 8  #: Largest range of a constant column, in rounding errors of its values.
MIN_RESOLUTION = 2.0**-22
"""Smallest step, or hundredth of a deviation, of the largest value without standardization."""
MAX_VALUE = 1e150
IDENTIFIER = re.compile(r"(^|[^A-Za-z])[Ii][Dd]$|[a-z]I[Dd]$|(?i:uuid|^(row|index|nr|no))$")
"""Names of columns of identifiers."""


@dataclass(frozen=True)
class Column:
    r"""A column of the table, or one category of a condition, and its standardization.

    A value v becomes :math:`x = (v - \text{origin} + \text{step} \cdot w - \text{offset}) /
    \text{scale}`, where w is uniform in [0, 1) for quantized columns, and absent for continuous
    ones. The origin is subtracted first, in float64, so that small differences of large values are
    kept. Category k becomes a number of an interval (:func:`to_line`).
    """

    name: str
    #: ``continuous``; ``quantized``: values on a grid; ``constant``: no coordinate of the model;
    #: ``categorical``: names; ``indicator``: of one category, in a condition.
    kind: Kind
    dtype: str  #: Type of the table's column.
    low: float = 0.0  #: Smallest training value.
    high: float = 0.0  #: Largest training value.
    origin: float = 0.0
    offset: float = 0.0  #: Mean of the dequantized training values minus the origin.
    scale: float = 1.0  #: Standard deviation of the dequantized training values.
    step: float | None = None  #: Difference between neighboring values of a quantized column.
    decimals: int | None = None  #: Number of decimals of the multiples of a step.
    #: Values that are no multiples of a step, which is then the smallest difference.
    levels: tuple[float, ...] | None = None
    #: Names of categories and their shares of the training rows, the largest first.
    categories: tuple[tuple[str, float], ...] | None = None
    fill: float | str | None = None  #: Replaces missing values; None refuses them.

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
    def as_condition(self) -> "list[Column]":
        """The columns of a condition: without dequantization, an indicator for each category."""
        if self.kind != "categorical":
            return [replace(self, step=None)]
        return [replace(self, kind="indicator", step=None, categories=((name, share),),
                        offset=share, scale=math.sqrt(share * (1 - share)))
                for name, share in self.categories or ()]  # fmt: skip

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
            return np.array(self.names)[self.cell(np.nan_to_num(shifted))]
        return self.cell_start(self.cell(shifted))

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
    """What is wrong with the values of a column, and the settings that accept it, if any do."""

    def __init__(self, what: str, column: object, **fix: str) -> None:
        super().__init__(f"{what} in {column}")
        self.what, self.column, self.fix = what, str(column), fix


class TableError(UserError):
    """Columns cannot be used; ``settings`` of the data, if there are any, accept the table."""

    def __init__(self, problems: list[ColumnProblem], fix: str = "", **settings: Any) -> None:
        columns: dict[str, list[str]] = {}
        for problem in problems:
            columns.setdefault(problem.what, []).append(problem.column)
        text = "; ".join(f"{what} in {named(names)}" for what, names in columns.items())
        if settings:
            shown = {k: v if isinstance(v, str) else "|".join(v) for k, v in settings.items()}
            fix = ", or set " + ", ".join(f"data.{name}={value}" for name, value in shown.items())
        error = unexpected("columns", "finite numbers", text, f"Correct these values{fix}")
        super().__init__(error.message)
        self.problems, self.settings = problems, settings


def parse(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Convert a column to float64, with NaN for missing values and text, and a mask of text."""
    kind = types.infer_dtype(values)
    if kind.startswith(("complex", "date", "period", "time")):
        what = "complex numbers" if kind == "complex" else "dates or times"
        raise ColumnProblem(what, values.name)
    is_value = values.notna().to_numpy()
    if not types.is_numeric_dtype(values.dtype):
        values = pd.to_numeric(values.astype(object), errors="coerce")
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    return numbers, np.isnan(numbers) & is_value


def to_numbers(values: pd.Series) -> np.ndarray:
    """Convert a column of finite numbers to float64, with NaN for missing values."""
    numbers, is_text = parse(values)
    if is_text.any():
        first, row = printable(str(values[is_text].iloc[0])), values.index[is_text][0]
        example = f"({is_text.sum():,}, such as {first!r} in row {row})"
        raise ColumnProblem("text among numbers", f"{values.name} {example}")
    if infinite := int(np.isinf(numbers).sum()):
        raise ColumnProblem("infinities", f"{values.name} ({infinite:,})")
    return numbers


def fit_column(
    values: pd.Series,
    training: np.ndarray,
    kind: ColumnKind | None,
    categorical: Categorical,
    missing: Missing,
    scale: Scale,
) -> Column:
    """Describe a column by its training rows, and check all rows; see :meth:`.Preprocessor.fit`.

    1. Text, and pandas' categories, are categories.
    2. A column of one value, up to rounding errors, is constant.
    3. Numbers that are multiples of a step, at most 65,536 of them, are quantized (integers,
       decimals).
    4. At most 256 numbers, each of which ten rows have on average, are quantized: each is a level.
    5. All other numbers are continuous.

    Identifiers, dates, and text of which most values are different, are refused.
    """
    if values[training].isna().all():
        raise ColumnProblem("no values", values.name)
    if missing == "refuse" and (absent := int(values.isna().sum())):
        fix = {} if 2 * absent > len(values) else {"missing": "median"}
        raise ColumnProblem("missing values", f"{values.name} ({absent:,})", **fix)
    is_named = IDENTIFIER.search(str(values.name)) and not types.is_float_dtype(values.dtype)
    if kind is None and is_named and len(values) > MIN_REPEATS and values.is_unique:
        raise ColumnProblem("identifiers", values.name)
    column = Column(str(values.name), "constant", str(values.dtype))
    if kind == "category" or (kind is None and _is_text(values)):
        if kind is None and _are_dates(values.dropna().astype(str)):
            raise ColumnProblem("dates or times", values.name)
        if kind is None and 2 * values.nunique() > values.count() > 2 * MIN_REPEATS:
            raise ColumnProblem("different text in most rows", values.name)
        if kind is None and categorical == "refuse" and values.nunique() > 1:
            raise ColumnProblem("text", values.name, categorical="intervals")
        return _fit_categories(column, values[training], missing == "median")
    numbers = to_numbers(values)
    numbers = numbers[training & ~np.isnan(numbers)]
    if missing == "median":
        column = replace(column, fill=float(np.quantile(numbers, 0.5, method="lower")))
    return _fit_numbers(column, numbers, kind, scale)


def _is_text(values: pd.Series) -> bool:
    """Whether a column has more text than numbers, or pandas' categories."""
    numbers, is_text = parse(values)
    is_category = isinstance(values.dtype, pd.CategoricalDtype)
    return is_category or bool(is_text.sum() > np.isfinite(numbers).sum())


def _are_dates(texts: pd.Series) -> bool:
    """Whether text has one format of dates, the day before the month or after it."""
    with warnings.catch_warnings(action="ignore"):  # of an order that the first text excludes
        formats = {guess_datetime_format(texts.iloc[0], is_first) for is_first in (False, True)}
    return any(form and "%d" in form and pd.to_datetime(texts, format=form, errors="coerce")
               .notna().all() for form in formats)  # fmt: skip


def _fit_categories(column: Column, values: pd.Series, fills: bool) -> Column:
    counts = Counter(values.dropna().astype(str))
    if len(counts) > MAX_CATEGORIES:
        raise ColumnProblem(f"more than {MAX_CATEGORIES} categories", column.name)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    shares = np.array([counts[name] for name in names]) / counts.total()
    categories, fill = tuple(zip(names, shares.tolist(), strict=True)), names[0] if fills else None
    column = replace(column, categories=categories, fill=fill)
    if len(names) == 1:
        return column
    ranks = np.arange(len(names))
    mean = float(shares @ ranks)
    scale = math.sqrt(float(shares @ (ranks - mean) ** 2) + 1 / 12)
    return replace(column, kind="categorical", high=float(ranks[-1]), offset=mean + 0.5,
                   scale=scale, step=1.0)  # fmt: skip


def _fit_numbers(
    column: Column, values: np.ndarray, kind: ColumnKind | None, scale: Scale
) -> Column:
    precision = PRECISIONS.get(column.dtype.lower(), 2.0**-53)
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    column = replace(column, low=low, high=high, origin=low)
    if high - low <= MAX_ROUNDING * precision * largest:
        return column
    if largest > MAX_VALUE or high - low < 1 / MAX_VALUE:
        what = f"values beyond {MAX_VALUE:g}, or a range below {1 / MAX_VALUE:g},"
        raise ColumnProblem(what, column.name)
    mean, deviation = float((values - low).mean()), float((values - low).std())
    step, decimals, levels = _find_step(values, precision)
    if kind == "integer" and step is None:
        raise ColumnProblem(f"no step, or more than {MAX_STEPS:,},", column.name)
    if step is None or kind == "number":
        step = None
        column = replace(column, kind="continuous", origin=low + mean, scale=deviation)
    else:
        column = replace(
            column, kind="quantized", offset=mean + step / 2, step=step, decimals=decimals,
            levels=levels, scale=math.sqrt(deviation**2 + step**2 / 12),
        )  # fmt: skip
    if scale == "none":
        if (step or deviation / 100) < MIN_RESOLUTION * largest:
            what = "differences that float32 cannot represent (scale=none)"
            raise ColumnProblem(what, column.name)
        return replace(column, offset=-column.origin, scale=1.0)
    return column


def _find_step(
    values: np.ndarray, precision: float
) -> tuple[float | None, int | None, tuple[float, ...] | None]:
    """Find the step of a quantized column, its decimals, and its values if they are on no grid."""
    extent = np.ptp(values)
    for part in (values[:PREFIX], values):
        step, decimals = _grid(part, precision)
        if math.isnan(step) or (step and extent > MAX_STEPS * step):
            break  # more values only decrease the step
    else:
        return step, decimals, None
    if len(np.unique(values[:PREFIX])) <= MAX_LEVELS:
        levels = np.unique(values)
        if len(levels) <= min(MAX_LEVELS, len(values) // MIN_REPEATS):
            return float(np.diff(levels).min()), None, tuple(map(float, levels))
    return None, None, None


def _grid(values: np.ndarray, precision: float) -> tuple[float, int]:
    """Find the largest step of which all differences of values are multiples, and its decimals.

    The step is 0 if all values are equal, and NaN if there is none of few decimals.
    """
    for decimals in range(MAX_DECIMALS + 1):
        scaled = values * 10.0**decimals
        tolerance = TOLERANCE * precision * abs(scaled)
        if (decimals and tolerance.max() > MAX_TOLERANCE) or abs(scaled).max() > 2.0**62:
            break
        if (abs(scaled - np.rint(scaled)) <= tolerance.clip(max=MAX_TOLERANCE)).all():
            integers = np.rint(scaled).astype(np.int64)
            return int(np.gcd.reduce(abs(integers - integers[0]))) / 10**decimals, decimals
    return math.nan, 0


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
