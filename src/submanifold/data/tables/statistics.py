"""Statistics of columns in one pass over the rows of a table, and the kinds that they imply."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api import types

from submanifold.common.errors import UserError, did_you_mean
from submanifold.common.files import printable
from submanifold.data.tables.columns import Column, dropping, duplicates, named, to_numbers

if TYPE_CHECKING:
    from submanifold.data.settings import Categorical, GivenKind, Missing, Scale

MAX_STEPS = 2**16
"""Columns of more steps count as continuous: the noise of the dequantization would be invisible."""
MAX_DECIMALS = 9
MAX_LEVELS, MIN_REPEATS = 256, 10
"""Largest number of values of a column without a step that counts as quantized, and the mean number
of rows that such a value must have."""
MAX_CATEGORIES = 256
PREFIX = 1000
"""First values of a chunk, which rule out most hypotheses about a column."""
TOLERANCE, MAX_TOLERANCE = 4.0, 0.01
"""Rounding errors of a value that is a multiple of a step: units of the last place, steps."""
SAMPLED_ROWS, SAMPLED_VALUES = 2**17, 2**23
"""Largest sample of rows for quantiles and medians, and values in it."""
QUANTILES = 129
MIN_RESOLUTION = 100
"""Smallest standard deviation of a continuous column, in rounding errors of its values."""
MAX_ROUNDING = 8
"""Largest range of a constant column, in rounding errors of its values."""
FLOAT32_STEPS = 4
"""Smallest difference in units of the last place of float32 without standardization."""
MAX_VALUE = 1e150
MIN_ROWS = 2


@dataclass
class Grid:
    """The largest step of which all values of a column, times a power of ten, are multiples."""

    decimals: int = 0
    reference: int | None = None
    divisor: int = 0

    def update(self, values: np.ndarray, precision: float) -> bool:
        """Add finite values; return False if they are not multiples of a step.

        Args:
            values: Values (n,).
            precision: Relative rounding error of the values.
        """
        while self.decimals <= MAX_DECIMALS:
            scaled = values * 10.0**self.decimals
            tolerance = TOLERANCE * precision * abs(scaled)
            if self.decimals and tolerance.max() > MAX_TOLERANCE:
                return False
            if (abs(scaled - np.rint(scaled)) <= tolerance.clip(max=MAX_TOLERANCE)).all():
                break
            self.decimals, self.divisor = self.decimals + 1, self.divisor * 10
            self.reference = None if self.reference is None else self.reference * 10
        else:
            return False
        if abs(scaled).max() > 2.0**62:
            return False
        integers = np.rint(scaled).astype(np.int64)
        if self.reference is None:
            self.reference = int(integers[0])
        if self.divisor != 1:
            differences = abs(np.unique(integers) - self.reference)
            self.divisor = math.gcd(self.divisor, int(np.gcd.reduce(differences)))
        return True

    @property
    def step(self) -> float:
        """The step; 0 if all values are equal."""
        return self.divisor / 10**self.decimals


@dataclass
class Tally:
    """Statistics of one column."""

    name: str
    dtype: str
    given: GivenKind | None
    count: int = 0
    missing: int = 0
    infinite: int = 0
    text: int = 0
    first_text: tuple[str, str] = ("", "")
    shift: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    precision: float = 0.0
    grid: Grid | None = field(default_factory=Grid)
    levels: np.ndarray | None = field(default_factory=lambda: np.empty(0))
    categories: Counter[str] | None = field(default_factory=Counter)

    def update(self, values: pd.Series) -> np.ndarray:
        """Add the values of a chunk of rows (n,); return them as numbers."""
        self.dtype = _common_dtype(self.dtype or str(values.dtype), str(values.dtype))
        if isinstance(values.dtype, pd.CategoricalDtype):
            self.given = self.given or "categorical"
        if self.given == "categorical":
            self.missing += int(values.isna().sum())
            self._count_categories(values)
            return np.full(len(values), np.nan)
        numbers, text = to_numbers(values)
        if text.any():
            if not self.text:
                row = int(text.argmax())
                self.first_text = str(values.index[row]), str(values.iloc[row])
            self.text += int(text.sum())
        if not types.is_numeric_dtype(values.dtype):
            self._count_categories(values)
        self.missing += int(values.isna().sum())
        finite = np.isfinite(numbers)
        self.infinite += int(np.isinf(numbers).sum())
        self._add(numbers if finite.all() else numbers[finite], _precision(values.dtype))
        return numbers

    def _add(self, values: np.ndarray, precision: float) -> None:
        if not len(values):
            return
        if not self.count:
            self.shift = float(values[0])
        self.count += len(values)
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self.precision = max(self.precision, precision)
        if max(abs(self.low), abs(self.high)) > MAX_VALUE:
            return
        shifted = values - self.shift
        self.total += float(shifted.sum())
        self.squares += float(shifted @ shifted)
        for part in (values[:PREFIX], values):
            if self.grid is not None and not (
                self.grid.update(part, precision)
                and (not self.grid.step or self.high - self.low <= MAX_STEPS * self.grid.step)
            ):  # more values only decrease the step and increase the range
                self.grid = None
            if self.levels is not None:
                self.levels = np.union1d(self.levels, part)
                if len(self.levels) > MAX_LEVELS:
                    self.levels = None

    def _count_categories(self, values: pd.Series) -> None:
        if self.categories is not None:
            self.categories.update(values.dropna().astype(str))
            if len(self.categories) > MAX_CATEGORIES:
                self.categories = None

    @property
    def is_categorical(self) -> bool:
        """Whether values are names."""
        return self.given == "categorical" or self.text > self.count

    @property
    def step(self) -> float | None:
        """The step of a quantized column."""
        if self.given == "continuous":
            return None
        if self.grid is not None:
            return self.grid.step
        if self.has_levels:
            assert self.levels is not None
            return float(np.diff(self.levels).min())
        _, exponent = math.frexp(max(abs(self.low), abs(self.high)))
        rounding = self.precision * 2.0**exponent  # the unit of the last place
        return rounding if self.deviation < MIN_RESOLUTION * rounding else None

    @property
    def has_levels(self) -> bool:
        """Whether the column has few values, each of which many rows have."""
        return self.levels is not None and len(self.levels) * MIN_REPEATS <= self.count

    @property
    def deviation(self) -> float:
        """Standard deviation of the values."""
        mean = self.total / self.count
        return math.sqrt(max(0.0, self.squares / self.count - mean**2))

    @property
    def is_constant(self) -> bool:
        """Whether all values are equal up to rounding errors."""
        largest = max(abs(self.low), abs(self.high))
        return self.high - self.low <= MAX_ROUNDING * self.precision * largest

    def column(self, scale: Scale, sample: np.ndarray | None, fills: bool) -> Column:
        """Describe a column of numbers.

        Args:
            scale: How values are standardized.
            sample: Values of some rows (n,), with NaN for missing values, if they are needed.
            fills: Whether the median replaces missing values.
        """
        fill = None
        if fills:
            assert sample is not None
            fill = float(np.nanquantile(sample, 0.5, method="lower"))
        found = Column(self.name, "constant", self.dtype, self.low, self.high, self.low, fill=fill)
        if self.is_constant:
            return found
        step = self.step
        mean, variance = self.total / self.count, self.deviation**2
        if step is None:
            found = replace(found, kind="continuous", origin=self.shift + mean)
        else:
            offset = self.shift - self.low + mean + step / 2
            found = replace(found, kind="quantized", offset=offset, step=step)
            variance += step**2 / 12
            if self.grid is not None:
                found = replace(found, decimals=self.grid.decimals)
            elif self.has_levels and self.levels is not None:
                found = replace(found, levels=tuple(map(float, self.levels)))
        found = replace(found, scale=math.sqrt(variance))
        if scale == "none":
            return replace(found, offset=-found.origin, scale=1.0)
        if scale == "quantile":
            assert sample is not None
            return replace(found, knots=_knots(found, sample[np.isfinite(sample)]))
        return found

    def categorical_column(self, fills: bool) -> Column:
        """Describe a column of names; the most frequent one is the first."""
        counts = self.categories or Counter()
        names = sorted(counts, key=lambda name: (-counts[name], name))
        shares = np.array([counts[name] for name in names]) / counts.total()
        categories = tuple(zip(names, shares.tolist(), strict=True))
        fill, ranks = names[0] if fills else None, np.arange(len(names))
        found = Column(self.name, "constant", self.dtype, categories=categories, fill=fill)
        if len(names) == 1:
            return found
        mean = float(shares @ ranks)
        scale = math.sqrt(float(shares @ (ranks - mean) ** 2) + 1 / 12)
        return replace(found, kind="categorical", high=float(ranks[-1]), offset=mean + 0.5,
                       scale=scale, step=1.0)  # fmt: skip


class Statistics:
    """Statistics of the columns of a table, from chunks of its rows.

    Args:
        kinds: Kinds of columns by name, instead of those found: ``continuous``, ``quantized`` or
            ``categorical``.
        categorical: ``refuse`` raises an error if a column contains text; ``intervals`` maps
            categories to numbers (:mod:`.categories`).
        missing: ``refuse`` raises an error if values are missing; ``drop`` leaves out their rows;
            ``median`` replaces them by the median of the column, or its most frequent category.
        scale: ``standard``, ``quantile`` (normal scores), or ``none``.
    """

    def __init__(
        self,
        kinds: Mapping[str, GivenKind] | None = None,
        categorical: Categorical = "refuse",
        missing: Missing = "refuse",
        scale: Scale = "standard",
    ) -> None:
        self.kinds, self.categorical = dict(kinds or {}), categorical
        self.missing, self.scale = missing, scale
        self.rows = self.dropped = 0
        self._tallies: dict[str, Tally] = {}
        self._rng, self._share = np.random.default_rng(0), 1.0
        self._sample: np.ndarray = np.empty((0, 0))
        self._priority = np.empty(0)

    def update(self, frame: pd.DataFrame) -> None:
        """Add rows."""
        names = list(map(str, frame.columns))
        if not self._tallies:
            self._start(names)
        if self.missing == "drop":
            for name, count in zip(names, frame.isna().sum(), strict=True):
                self._tallies[name].missing += int(count)
            kept = frame.notna().all(axis=1).to_numpy()
            self.dropped += int((~kept).sum())
            frame = frame if kept.all() else frame[kept]
        numbers = [self._tallies[name].update(frame.iloc[:, index])
                   for index, name in enumerate(names)]  # fmt: skip
        self.rows += len(frame)
        if self.scale == "quantile" or self.missing == "median":
            self._add_to_sample(numbers)

    def columns(self) -> tuple[Column, ...]:
        """Find the kind of each column and its standardization.

        Raises:
            UserError: The table is too small, or a column cannot be used.
        """
        self._check()
        columns: list[Column] = []
        for index, tally in enumerate(self._tallies.values()):
            fills = self.missing == "median"
            if tally.is_categorical:
                columns.append(tally.categorical_column(fills))
            else:
                sample = self._sample[:, index] if len(self._sample) else None
                columns.append(tally.column(self.scale, sample, fills))
        return tuple(columns)

    def _start(self, names: list[str]) -> None:
        if not names:
            raise UserError("columns: expected at least one, got none. Choose others.")
        if twice := duplicates(names):
            raise UserError(
                f"columns: expected different names of columns, got {named(twice)} more than once. "
                "Rename the columns."
            )
        if unknown := [name for name in self.kinds if name not in names]:
            raise UserError(
                f"kinds.{unknown[0]}: expected a column of the table ({named(names)}), got none of "
                f"this name.{did_you_mean(unknown[0], names)}"
            )
        self._tallies = {name: Tally(name, "", self.kinds.get(name)) for name in names}
        self._sample = np.empty((0, len(names)))

    def _add_to_sample(self, numbers: list[np.ndarray]) -> None:
        priority = self._rng.random(len(numbers[0]))
        kept = priority < self._share
        chunk = np.column_stack([each[kept] for each in numbers])
        self._sample = np.concatenate([self._sample, chunk])
        self._priority = np.concatenate([self._priority, priority[kept]])
        limit = min(SAMPLED_ROWS, max(QUANTILES, SAMPLED_VALUES // len(numbers)))
        while len(self._sample) > limit:
            self._share /= 2
            kept = self._priority < self._share
            self._sample, self._priority = self._sample[kept], self._priority[kept]

    def _check(self) -> None:
        """Refuse columns that cannot be used; each error names all columns that have it."""
        tallies, total = self._tallies.values(), self.rows + self.dropped
        if empty := [each.name for each in tallies if total and each.missing == total]:
            raise UserError(
                f"columns: expected values in every column, got none in {named(empty)}. "
                f"Leave them out with {dropping(empty)}."
            )
        if self.rows < MIN_ROWS:
            why = f" ({self.dropped:,} others have missing values)" if self.dropped else ""
            raise UserError(
                f"rows: expected at least {MIN_ROWS}, got {self.rows}{why}. Use a larger table."
            )
        for each in tallies:
            if each.text and not each.is_categorical:
                row, value = each.first_text
                raise UserError(
                    f"columns.{printable(each.name)}: expected numbers, got {each.text:,} other "
                    f"values, such as {printable(value)!r} in row {row}. Correct them, leave "
                    f"them empty with data.missing=median or drop, or leave the column out with "
                    f"{dropping([each.name])}."
                )
        if self.missing == "refuse":
            refuse_missing({each.name: each.missing for each in tallies})
        fix = "Correct them, or leave the columns out with data.drop"
        refuse({each.name: each.infinite for each in tallies}, "columns", "infinities", fix)
        texts = [each for each in tallies if each.is_categorical]
        if texts and self.categorical == "refuse":
            names = [each.name for each in texts]
            raise UserError(
                f"categorical: expected numbers in every column, got categories in {named(names)}. "
                f"Leave them out with {dropping(names)}, set data.categorical=intervals, or make "
                "one of them the label with data.label."
            )
        if many := [each.name for each in texts if each.categories is None]:
            raise UserError(
                f"categorical: expected at most {MAX_CATEGORIES} categories in a column, got more "
                f"in {named(many)}. Leave them out with {dropping(many)}."
            )
        for each in tallies:
            if not each.is_categorical:
                self._check_numbers(each)

    def _check_numbers(self, each: Tally) -> None:
        name, largest = printable(each.name), max(abs(each.low), abs(each.high))
        if largest > MAX_VALUE:
            raise UserError(
                f"columns.{name}: expected values up to {MAX_VALUE:g}, got {largest:g}. Use "
                "logarithms, or another unit."
            )
        if not each.is_constant and each.high - each.low < 1 / MAX_VALUE:
            raise UserError(
                f"columns.{name}: expected a range of at least {1 / MAX_VALUE:g}, got "
                f"{each.high - each.low:g}. Use another unit."
            )
        if each.given == "quantized" and each.step is None:
            raise UserError(
                f"kinds.{name}: expected continuous, got quantized: the values are not multiples "
                "of a step. Leave it out."
            )
        if self.scale != "none" or each.is_constant:
            return
        deviation = each.deviation
        finest = deviation / MIN_RESOLUTION if each.step is None else each.step
        if finest < FLOAT32_STEPS * 2.0**-24 * largest:
            raise UserError(
                f"scale: expected standard or quantile, got none: float32 cannot represent the "
                f"differences of column {name} (standard deviation {deviation:g}, values of "
                f"{largest:g})."
            )


def refuse_missing(counts: Mapping[str, int]) -> None:
    """Raise a :class:`.UserError` if values are missing, from their numbers by column."""
    fix = "Set data.missing=drop (leaves out rows) or data.missing=median"
    refuse(counts, "missing", "missing values", fix)


def refuse(counts: Mapping[str, int], setting: str, what: str, fix: str) -> None:
    """Raise a :class:`.UserError` that names the columns with a number above 0."""
    if found := {name: count for name, count in counts.items() if count}:
        listed = named(f"{name} ({count:,})" for name, count in found.items())
        raise UserError(f"{setting}: expected no {what}, got some in {listed}. {fix}.")


def _precision(dtype: object) -> float:
    """Relative rounding error of numbers of a type."""
    name = str(dtype).lower()
    if "float16" in name or "halffloat" in name:
        return 2.0**-11
    return 2.0**-24 if "float32" in name or name.startswith("float[") else 2.0**-53


def _common_dtype(first: str, second: str) -> str:
    if first == second:
        return first
    try:
        return str(np.result_type(np.dtype(first), np.dtype(second)))
    except TypeError:  # one of them is not NumPy's
        return "object"


def _knots(column: Column, sample: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Compute quantiles of the dequantized values, and the normal scores of their ranks."""
    shifted = column.snap(sample)
    if column.step is not None:
        shifted = shifted + column.step * np.random.default_rng(0).random(len(shifted))
    ranks = (np.arange(QUANTILES) + 0.5) / QUANTILES
    values, index = np.unique(np.quantile(shifted, ranks), return_inverse=True)
    if len(values) < MIN_ROWS:  # nearly all values are equal
        values, index = np.unique(np.quantile(shifted, [0, 1]), return_inverse=True)
        ranks = np.array([0.5, QUANTILES - 0.5]) / QUANTILES
    if len(values) < MIN_ROWS:
        low, high = column.low - column.origin, column.high - column.origin
        values, index = np.array([low, high + (column.step or 0)]), np.array([0, 1])
        ranks = np.array([0.5, QUANTILES - 0.5]) / QUANTILES
    mean = np.bincount(index, ranks) / np.bincount(index)  # of the ranks of equal quantiles
    scores = [NormalDist().inv_cdf(each) for each in mean]
    return tuple(zip(map(float, values), scores, strict=True))
