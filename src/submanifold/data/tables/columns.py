"""Columns of a table: their kinds, and their conversion to numbers and back."""

import fnmatch
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, cast

import numpy as np
import pandas as pd
from pandas.api import types
from pydantic import Field

from submanifold.common.errors import UserError, did_you_mean, printable, unexpected

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

MAX_EXACT = 2.0**53  #: Up to it float64 represents all integers.
MAX_NAMED = 5  #: Number of columns that a message names.
MAX_CATEGORIES = 256
MAX_CODES = 20  #: Number of different values up to which numbers may be codes.
SNAP = 1e-3  #: Largest distance from a value of the grid that counts as on it, in steps.
MIN_RATIO = 100.0  #: Smallest ratio of the largest to the smallest value of a logarithmic column.
FIRST_DATE, LAST_DATE = -62135596800.0, 253402300799.0  #: Seconds of the years 1 to 9999.
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, kw_only=True)
class _Column:
    """What all columns have."""

    name: str
    dtype: str  #: Type of the table's column.
    missing: Share = 0.0  #: Share of the training rows without a value; if 0, all need one.
    texts: tuple[str, ...] = ()  #: Text among numbers, which is a missing value.

    used: ClassVar[str]  #: How the model uses the column.
    category_count: ClassVar[float] = math.inf


@dataclass(frozen=True, kw_only=True)
class Constant(_Column):
    """A column of one value, or of none, which is no coordinate of the model."""

    kind: Literal["constant"] = "constant"
    value: bool | int | float | str | None

    used: ClassVar[str] = "not used"

    @classmethod
    def fit(cls, values: pd.Series, **facts: Any) -> "Constant":
        """Keep the first value."""
        present = values.dropna()
        value = present.iloc[0] if len(present) else None
        value = value.item() if isinstance(value, np.generic) else value
        is_json = isinstance(value, bool | int | float | None)
        return cls(value=value if is_json else str(value), **facts)

    @property
    def found(self) -> str:
        """The value, as text."""
        return "no values" if self.value is None else f"one value: {printable(str(self.value))}"

    def differs(self, values: pd.Series) -> np.ndarray:
        """Return which values (N,) are others, by more than rounding errors of numbers."""
        is_present = values.notna().to_numpy()
        if self.value is None:
            return is_present
        if isinstance(self.value, str):
            return is_present & (values.map(str) != self.value).to_numpy()
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
        return is_present & ~np.isclose(numbers, float(self.value), rtol=1e-9, atol=0)

    def decode(self, count: int) -> Any:
        """Repeat the value."""
        return restore_type(np.full(count, self.value, object), self.dtype)


@dataclass(frozen=True, kw_only=True)
class _Number(_Column):
    r"""Numbers v, which become :math:`x = (n - \text{offset}) / \text{scale}`.

    Without a step n is :math:`v - \text{origin}`. The origin is subtracted first, in float64, so
    that small differences of large values are kept. With a step n is k + w, of
    :math:`v = \text{origin} + k\, \text{step}` and uniform noise w in [0, 1).
    """

    low: Finite  #: Smallest training value.
    high: Finite  #: Largest training value.
    origin: Finite
    step: Positive | None = None  #: Difference between neighboring values of the grid.
    decimals: int = 0  #: Of values of a grid.
    offset: Finite
    scale: Positive
    few: bool = False  #: Whether its values are so few that they may be codes.

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        grid: tuple[float, int] | None = None,
        is_scaled: bool = True,
        **facts: Any,
    ) -> Self:
        """Standardize values (N,) of a grid with a step and decimals, unless not ``is_scaled``."""
        low, high = float(values.min()), float(values.max())
        few = 2 < len(np.unique(values)) <= min(MAX_CODES, len(values) // 2)
        facts |= {"low": low, "high": high, "few": few}
        if grid is None:
            shift, scale = float((values - low).mean()), float((values - low).std())
            place = (low + shift, 0.0, scale) if is_scaled else (low, -low, 1.0)
        else:
            step, decimals = grid
            steps = np.rint((values - low) / step)
            place = (low, float(steps.mean()) + 0.5, _scale(steps))
            place = place if is_scaled else (low, -low / step, 1 / step)
            facts |= {"step": step, "decimals": decimals}
        origin, offset, scale = place
        return cls(origin=origin, offset=offset, scale=scale, **facts)

    @property
    def is_discrete(self) -> bool:
        """Whether values are on a grid."""
        return self.step is not None

    @property
    def found(self) -> str:
        """The range and the step, as text."""
        ends = (f"{end:.{12 if end.is_integer() else 6}g}" for end in (self.low, self.high))
        return f"numbers, {' to '.join(ends)}" + (
            f", in steps of {self.step:.6g}" if self.step else ""
        )

    def to_numbers(self, values: pd.Series) -> np.ndarray:
        """Convert values to float64 (N,), NaN where they are no finite numbers."""
        return to_numbers(values)[0]

    def encode(self, values: pd.Series) -> np.ndarray:
        """Return the differences from the origin (N,), in steps and rounded down if there are."""
        shifted = self.to_numbers(values) - self.origin
        return shifted if self.step is None else np.floor(shifted / self.step + SNAP)

    def clip(self, numbers: np.ndarray) -> np.ndarray:
        """Move numbers of a grid (N,) into the range of the training values; others stay."""
        if self.step is None:
            return numbers
        ends = self.encode(pd.Series([self.low, self.high]))
        return numbers.clip(*ends)

    def off_grid(self, values: pd.Series) -> np.ndarray:
        """Return which values (N,) are between those of the grid, so that they are rounded."""
        if self.step is None:
            return np.zeros(len(values), bool)
        steps = (self.to_numbers(values) - self.origin) / self.step
        return np.abs(steps - np.rint(steps)) > SNAP

    def decode(self, numbers: np.ndarray) -> Any:
        """Invert :meth:`encode`."""
        return restore_type(self._from_numbers(numbers), self.dtype)

    def _from_numbers(self, numbers: np.ndarray) -> np.ndarray:
        if self.step is None:
            return self.origin + numbers
        return np.round(self.origin + numbers * self.step, self.decimals)


@dataclass(frozen=True, kw_only=True)
class Continuous(_Number):
    """Numbers without a step."""

    kind: Literal["continuous"] = "continuous"
    used: ClassVar[str] = "as they are"


@dataclass(frozen=True, kw_only=True)
class Logarithmic(_Number):
    r"""Positive numbers v of several orders of magnitude, such as prices, with or without a step.

    The dequantized v becomes :math:`x = (\operatorname{arsinh}(v / c) - \text{offset}) /
    \text{scale}`, where c, the ``linear_width``, is a tenth of the smallest training value: a
    logarithm for all training values, and linear around zero, so that zero and negative values have
    a place.
    """

    kind: Literal["logarithmic"] = "logarithmic"
    linear_width: Positive  #: Size of the values among which x is linear.
    used: ClassVar[str] = "as logarithms"

    @classmethod
    def fit(  # type: ignore[override]
        cls, values: np.ndarray, grid: tuple[float, int] | None = None, **facts: Any
    ) -> "Logarithmic":
        """Standardize the logarithms of positive values (N,) of a grid with a step and decimals."""
        low, high = float(values.min()), float(values.max())
        middles = values
        if grid is not None:
            step, decimals = grid
            middles = values + step / 2
            facts |= {"step": step, "decimals": decimals}
        numbers = np.arcsinh(middles / (low / 10))
        return cls(
            low=low,
            high=high,
            origin=low if grid else 0.0,
            linear_width=low / 10,
            offset=float(numbers.mean()),
            scale=float(numbers.std()),
            **facts,
        )

    @staticmethod
    def suits(values: np.ndarray) -> bool:
        """Return whether values (N,) are of several orders of magnitude, and rather log-normal.

        The largest log-likelihood of a log-normal distribution is then larger than that of a normal
        one, by more than a nat for each value.

        Example:
            >>> normal = np.random.default_rng(0).normal(size=1000)
            >>> Logarithmic.suits(np.exp(normal / 2)), Logarithmic.suits(np.exp(2 * normal))
            (False, True)
        """
        low, high = values.min(), values.max()
        if low <= 0 or high < MIN_RATIO * low:
            return False
        logs = np.log(values)
        return bool(np.log(values.std()) - np.log(logs.std()) - logs.mean() > 1)


@dataclass(frozen=True, kw_only=True)
class Quantized(_Number):
    """Numbers on a grid."""

    kind: Literal["quantized"] = "quantized"
    step: Positive
    used: ClassVar[str] = "with noise over the step"


@dataclass(frozen=True, kw_only=True)
class Date(_Number):
    """Dates, as the numbers of seconds since 1970."""

    kind: Literal["date"] = "date"
    format: str  #: Of dates as text; empty for pandas' types of dates.
    unit_us: int  #: Microseconds of which all dates are multiples.
    used: ClassVar[str] = "as numbers of seconds"

    @property
    def found(self) -> str:
        """The first and the last date, as text."""
        return "dates, {} to {}".format(
            *self._to_dates(np.array([self.low, self.high])).astype(str)
        )

    def to_numbers(self, values: pd.Series) -> np.ndarray:
        """Convert values to seconds since 1970, float64 (N,), NaN where they are no dates."""
        return to_numbers(values, self.format)[0]

    def decode(self, numbers: np.ndarray) -> Any:
        """Invert :meth:`encode`."""
        return self._to_dates(self._from_numbers(numbers))

    def _to_dates(self, seconds: np.ndarray) -> pd.Series:
        """Convert seconds since 1970 to dates of the column's type and format."""
        units = np.rint(seconds.clip(FIRST_DATE, LAST_DATE) * (10**6 / self.unit_us))
        microseconds = units.astype(np.int64) * self.unit_us
        times = pd.Series(microseconds.astype("datetime64[us]")).dt.tz_localize("UTC")
        if self.format:
            return times.dt.strftime(self.format)
        if not self.dtype.startswith("datetime64"):
            return times.dt.tz_localize(None)  # of objects, such as datetime.date
        times = times if "," in self.dtype else times.dt.tz_localize(None)
        try:
            return times.astype(cast(Any, self.dtype))
        except pd.errors.OutOfBoundsDatetime:
            return times


@dataclass(frozen=True, kw_only=True)
class Categorical(_Column):
    r"""Categories k, the most frequent first, which become intervals of one coordinate.

    Category k becomes :math:`x = (z - \text{offset}) / \text{scale}` with z of
    :func:`.encoder.to_line`.
    """

    kind: Literal["categorical"] = "categorical"
    names: Annotated[tuple[str, ...], Field(min_length=2)]
    shares: tuple[Share, ...]  #: Of the training rows.
    offset: Finite
    scale: Positive
    levels: tuple[bool | int | float | str, ...] = ()  #: Of pandas' type of categories, in order.
    ordered: bool = False  #: Whether the order of the levels has a meaning.

    is_discrete: ClassVar[bool] = True
    used: ClassVar[str] = "as categories"

    @classmethod
    def fit(cls, values: pd.Series, **facts: Any) -> "Categorical":
        """Count the training values, which differ; too many raise a ColumnProblem."""
        counts = Counter(category_names(values.dropna()))
        if len(counts) > MAX_CATEGORIES:
            raise ColumnProblem(f"more than {MAX_CATEGORIES} categories", values.name)
        names = sorted(counts, key=lambda name: (-counts[name], name))
        shares = np.array([counts[name] for name in names]) / counts.total()
        ranks = np.repeat(np.arange(len(names)), [counts[name] for name in names])
        facts |= {"offset": float(ranks.mean()) + 0.5, "scale": _scale(ranks)}
        if isinstance(values.dtype, pd.CategoricalDtype):
            levels = values.dtype.categories.tolist()
            if all(isinstance(level, bool | int | float | str) for level in levels):
                facts |= {"levels": tuple(levels), "ordered": bool(values.dtype.ordered)}
        return cls(names=tuple(names), shares=tuple(shares.tolist()), **facts)

    @property
    def category_count(self) -> float:  # type: ignore[override]
        """Number of categories."""
        return len(self.names)

    @property
    def found(self) -> str:
        """The first categories, as text."""
        return f"{len(self.names)} categories: {named(self.names)}"

    @cached_property
    def _texts(self) -> list[str]:
        """The names as :func:`category_names` writes them; model files before 0.3 have floats."""
        is_float = self.dtype.lower().startswith("float")
        return [name.removesuffix(".0") if is_float else name for name in self.names]

    def unknown(self, values: pd.Series) -> np.ndarray:
        """Return where values are categories that the training rows do not have, (N,)."""
        return (values.notna() & ~category_names(values).isin(self._texts)).to_numpy()

    def encode(self, values: pd.Series) -> np.ndarray:
        """Return the numbers of the categories (N,), of unknown ones the last."""
        codes = pd.Index(self._texts).get_indexer(pd.Index(category_names(values)))
        numbers = np.where(codes < 0, len(self.names) - 1, codes)
        return np.where(values.isna(), np.nan, numbers)

    def decode(self, numbers: np.ndarray) -> Any:
        """Invert :meth:`encode`."""
        texts = np.array(self.names)[numbers.astype(int)]
        if not self.levels:
            return restore_type(texts, self.dtype)
        level_of = dict(zip(category_names(pd.Series(self.levels)), self.levels, strict=True))
        return pd.Categorical([level_of[text] for text in texts], self.levels, self.ordered)

    def clip(self, numbers: np.ndarray) -> np.ndarray:
        """Return numbers (N,) as they are: all are those of training values."""
        return numbers


Varying: TypeAlias = Continuous | Logarithmic | Quantized | Date | Categorical
"""Columns that are coordinates of the model."""
Column: TypeAlias = Varying | Constant


def _scale(numbers: np.ndarray) -> float:
    """Return the standard deviation of integers with noise over the step."""
    return math.sqrt(float(numbers.var()) + 1 / 12)


def category_names(values: pd.Series) -> pd.Series:
    """Write values (N,) as text; whole numbers as integers, which are floats beside blanks.

    Example:
        >>> category_names(pd.Series([4.0, 2.5, "A"])).tolist()
        ['4', '2.5', 'A']
    """
    return values.astype(object).map(
        lambda value: str(int(value)) if _is_whole(value) else str(value)
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, float | np.floating) and float(value).is_integer()


def restore_type(values: np.ndarray, dtype: str) -> Any:
    """Convert numbers, or text, (N,) to the type of the table's column."""
    if dtype.startswith("decimal"):  # of pyarrow, which pandas does not make from its name
        return values
    if dtype in ("bool", "boolean"):
        return values == "True" if values.dtype.kind == "U" else values.astype(float) >= 0.5
    if dtype.startswith("timedelta"):
        return pd.to_timedelta(values, unit="s")
    is_integer = dtype.startswith(("int", "uint")) and "[" not in dtype
    if is_integer and values.dtype.kind == "f":
        info = np.iinfo(dtype)
        largest = np.nextafter(float(info.max) + 1, 0)  # the largest integer may be rounded up
        return np.rint(values).clip(info.min, largest).astype(dtype)
    if values.dtype.kind == "f" and not types.is_numeric_dtype(dtype):
        return values  # of text, such as numbers and "?"
    try:
        return pd.Series(values).astype(dtype).array  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return values


class ColumnProblem(ValueError):  # noqa: N818
    """What is wrong with the values of a column."""

    def __init__(self, what: str, column: object) -> None:
        super().__init__(f"{what} in {column}")
        self.what, self.column = what, str(column)


class TableError(UserError):
    """Columns cannot be used."""

    def __init__(self, problems: Sequence[ColumnProblem], fix: str) -> None:
        self.problems = problems
        columns: dict[str, list[str]] = {}
        for problem in problems:
            columns.setdefault(problem.what, []).append(problem.column)
        text = "; ".join(f"{what} in {named(names)}" for what, names in columns.items())
        super().__init__(unexpected("columns", EXPECTED, text, fix).message)


EXPECTED = f"numbers, dates, or text of at most {MAX_CATEGORIES} values"


def to_numbers(values: pd.Series, dates: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Convert a column to float64, with NaN for missing values, text and infinities.

    Dates, of a format or of pandas' types (empty), become seconds since 1970. Also returns a mask
    of the text and infinities.
    """
    is_value = values.notna().to_numpy()
    if dates is not None:
        is_text = types.infer_dtype(values) == "string"
        form = (dates or "ISO8601") if is_text else None  # no text whose month is not clear
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
