"""Finding the kind and the standardization of each column of a table."""

import hashlib
import json
import math
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from pandas.api import types
from pandas.tseries.api import guess_datetime_format

from submanifold.data.fields import ColumnKind, Scale
from submanifold.data.tables.columns import (
    MAX_EXACT,
    MISSING,
    Column,
    ColumnProblem,
    TableError,
    named,
    to_numbers,
)

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
FEW_BITS, SAMPLED_ROWS, ALMOST_ONE = 8, 1000, 1 - 1e-4  #: In the search for copies of columns.
SMALL, FINE_STEP = 1e-6, 0.02
"""Rounding errors, and a step that may be one, in standard deviations."""
MAX_VALUE = 1e150
MAX_CODES = 20  #: Integers of at most so many different values may be codes.
IDENTIFIER = re.compile(r"(^|[^A-Za-z])[Ii][Dd]$|[a-z]I[Dd]$|(?i:uuid|^(row|index|nr|no))$")
"""Names of columns of identifiers."""


def fit_columns(
    frame: pd.DataFrame, training: np.ndarray, kinds: Mapping[str, ColumnKind], scale: Scale
) -> list[Column]:
    """Describe the columns of a table by its training rows, and check all rows.

    1. Dates are numbers of seconds. Text of few values, and pandas' categories, are categories.
    2. A column of one value, up to rounding errors, is constant.
    3. Numbers that are multiples of a step, at most 65,536 of them, are quantized (integers,
       decimals).
    4. At most 256 numbers, each of which ten rows have on average, are quantized: each is a level.
    5. All other numbers are continuous.
    6. Identifiers, text of many values, columns without values, and copies and multiples of other
       columns are ignored, unless their kind is set.

    Text among numbers, and infinities, are missing values. A column of numbers with missing values
    is followed by its flag. Raises a :class:`.TableError` for columns that are not of a set kind.
    """
    columns, problems = list[Column](), list[ColumnProblem]()
    for name, values in frame.items():
        try:
            columns += _fit_column(values, training, kinds.get(str(name)), scale)
        except ColumnProblem as problem:
            problems.append(problem)
    if problems:
        raise TableError(problems, "Correct these values, or set another kind")
    copies = _copies(frame, [column for column in columns if column.name not in kinds])
    return [
        _ignored(column, copies[column.name]) if column.name in copies else column
        for column in columns
        if not (column.is_flag and column.name in copies)
    ]


def missing_values(values: pd.Series, kind: ColumnKind | None) -> np.ndarray:
    """Return where a column has no value (N,); text and infinities are none among numbers."""
    column, numbers, _ = _read_column(values, kind)
    return np.isnan(numbers) if column.kind == "constant" else values.isna().to_numpy()


def _read_column(
    values: pd.Series, kind: ColumnKind | None
) -> tuple[Column, np.ndarray, np.ndarray]:
    """Return an ignored or categorical column, or one of numbers, which is constant before its fit.

    Also returns the values as numbers (N,), and where they are text or infinities.
    """
    inferred = types.infer_dtype(values)
    dtype = "boolean" if inferred == "boolean" else str(values.dtype)  # also with missing values
    column, nothing = Column(str(values.name), "constant", dtype), np.empty(0)
    if inferred == "complex":
        return _ignored(column, "complex numbers"), nothing, nothing
    is_named = IDENTIFIER.search(column.name) and not types.is_float_dtype(values.dtype)
    if kind is None and is_named and len(values) > MIN_REPEATS and values.is_unique:
        return _ignored(column, "identifiers"), nothing, nothing
    if kind is None or kind == "number":
        column = replace(column, dates=_date_format(values, inferred))
    numbers, is_text = to_numbers(values, column.dates)
    is_category = isinstance(values.dtype, pd.CategoricalDtype)
    if kind is None and (is_category or is_text.sum() > np.isfinite(numbers).sum()):
        if not _has_few_values(values):
            reason = f"text of {values.astype(str)[values.notna()].nunique():,} different values"
            return _ignored(column, reason), nothing, nothing
        kind = "category"
    if kind == "category":
        column = replace(column, kind="categorical", dates=None)
    return column, numbers, is_text


def _has_few_values(values: pd.Series) -> bool:
    """Return whether values repeat so often that they can be categories."""
    texts = values.dropna().astype(str)
    count = texts.nunique()
    return count <= MAX_CATEGORIES and not (2 * count > len(texts) > 2 * MIN_REPEATS)


def _fit_column(
    values: pd.Series, training: np.ndarray, kind: ColumnKind | None, scale: Scale
) -> list[Column]:
    column, numbers, is_text = _read_column(values, kind)
    if column.kind == "ignored":
        return [column]
    if column.kind == "categorical":
        return [_fit_categories(column, values, training)]
    is_missing = np.isnan(numbers)
    known = numbers[training & ~is_missing]
    if not len(known):
        if kind is not None:
            raise ColumnProblem("no numbers", column.name)
        return [_ignored(column, "no values")]
    if column.dates is not None:
        column = replace(column, decimals=_decimals_of_seconds(known))
    column = _fit_numbers(column, known, kind, scale)
    if column.kind != "continuous" and _are_rounded(values, numbers):
        if kind is not None:
            raise ColumnProblem("integers beyond 2^53, which are not kept exactly,", column.name)
        column = Column(column.name, "categorical", column.dtype)
        if _has_few_values(values):
            return [_fit_categories(column, values, training)]
        return [_ignored(column, "integers beyond 2^53")]
    if not is_missing.any():
        return [column]
    if not types.is_numeric_dtype(values.dtype):
        texts = Counter(values[training & is_text].astype(str))
        column = replace(
            column,
            texts=tuple(text for text, _ in texts.most_common(MAX_CATEGORIES)),
            text_share=texts.total() / int(training.sum()),
        )
    flag = Column(column.name, "constant", "bool", dates=column.dates, is_flag=True)
    missing_count = max(1, int(is_missing[training].sum()))
    total = len(known) + missing_count
    shares = ("present", len(known) / total), (MISSING, missing_count / total)
    return [replace(column, missing="noise"), _as_categories(flag, shares)]


def _are_rounded(values: pd.Series, numbers: np.ndarray) -> bool:
    """Return whether values are integers that float64 does not represent."""
    largest = np.nanmax(abs(numbers), initial=0)
    if largest <= MAX_EXACT or types.infer_dtype(values) != "integer":
        return False
    integers = values.dropna().astype(object)
    return any(int(float(integer)) != integer for integer in integers)


def _ignored(column: Column, reason: str) -> Column:
    return Column(column.name, "ignored", column.dtype, reason=reason)


def _date_format(values: pd.Series, inferred: str) -> str | None:
    """Return the format of dates as text, an empty one for pandas' types, None without dates.

    Text has one format of dates, with the day before the month or after it.
    """
    if inferred.startswith("date"):
        return ""
    texts = values.dropna()
    if inferred != "string" or not len(texts):
        return None
    with warnings.catch_warnings(action="ignore"):  # of an order that the first text excludes
        formats = [guess_datetime_format(texts.iloc[0], is_first) for is_first in (False, True)]
    return next(
        (
            form
            for form in formats
            if form
            and "%d" in form
            and pd.to_datetime(texts, format=form, errors="coerce").notna().all()
        ),
        None,
    )


def _decimals_of_seconds(seconds: np.ndarray) -> int:
    """Return 0, 3 or 6: whether times are whole seconds, milliseconds or microseconds."""
    for decimals in (0, 3):
        if (abs(seconds - np.round(seconds, decimals)) < 10.0 ** -(decimals + 3)).all():
            return decimals
    return 6


def _fit_categories(column: Column, values: pd.Series, training: np.ndarray) -> Column:
    if values.isna().any():
        column = replace(column, missing="category")
    counts = Counter(column.categories_of(values[training]))
    if column.missing == "category":
        counts[MISSING] = max(1, counts[MISSING])
    if len(counts) > MAX_CATEGORIES:
        raise ColumnProblem(f"more than {MAX_CATEGORIES} categories", column.name)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return _as_categories(column, tuple((name, counts[name] / counts.total()) for name in names))


def _as_categories(column: Column, shares: tuple[tuple[str, float], ...]) -> Column:
    if len(shares) == 1:
        return replace(column, kind="constant", categories=shares)
    weights, ranks = np.array([share for _, share in shares]), np.arange(len(shares))
    mean = float(weights @ ranks)
    scale = math.sqrt(float(weights @ (ranks - mean) ** 2) + 1 / 12)
    return replace(
        column,
        kind="categorical",
        categories=shares,
        high=float(ranks[-1]),
        offset=mean + 0.5,
        scale=scale,
        step=1.0,
    )


def _copies(frame: pd.DataFrame, columns: Sequence[Column]) -> dict[str, str]:
    """Find columns that an earlier one determines: by categories, or a line up to rounding.

    Of numbers the one with the larger rounding error is the copy. Returns reasons by name.
    """
    copies: dict[str, str] = {}
    codes: dict[bytes, Column] = {}
    for column in columns:
        if not column.is_flag and (column.kind == "categorical" or column.bits <= FEW_BITS):
            code = pd.factorize(frame[column.name])[0]
            first = codes.setdefault(hashlib.sha256(code.tobytes()).digest(), column)
            if first is not column and "categorical" in (first.kind, column.kind):
                copies[column.name] = f"a copy of {first.name}"
    numeric = [column for column in columns if column.kind in ("continuous", "quantized")]
    sample = frame[:: -(-len(frame) // SAMPLED_ROWS)]
    if len(numeric) < 2 or len(sample) < MIN_REPEATS:
        return copies

    def standardized(column: Column, rows: pd.DataFrame) -> np.ndarray:
        numbers, _ = to_numbers(rows[column.name], column.dates)
        return (numbers - np.nanmean(numbers)) / (np.nanstd(numbers) or 1)

    z = np.nan_to_num(np.stack([standardized(column, sample) for column in numeric]))
    norms = np.linalg.norm(z, axis=1)
    close = np.abs(z @ z.T) > ALMOST_ONE * np.outer(norms, norms)
    for i, j in zip(*np.nonzero(np.triu(close, 1)), strict=True):
        pair = sorted((numeric[i], numeric[j]), key=_resolution)  # stable: the earlier one first
        if any(column.name in copies for column in pair):
            continue
        a, b = (standardized(column, frame) for column in pair)
        slope = np.nanmean(a * b)
        with np.errstate(invalid="ignore"):
            is_copy = (np.isnan(a) == np.isnan(b)).all() and not (
                abs(b - slope * a) > max(SMALL, 0.6 * _resolution(pair[1]))
            ).any()
        if is_copy:
            copies[pair[1].name] = f"a multiple of {pair[0].name}"
    return copies


def _resolution(column: Column) -> float:
    """Return the step of a column in standard deviations; 0 if it is no fine grid."""
    step = 0.0 if column.step is None or column.levels else column.step / column.scale
    return round(step, 9) if step < FINE_STEP else 0.0


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
            column,
            kind="quantized",
            offset=mean + step / 2,
            scale=math.sqrt(deviation**2 + step**2 / 12),
            step=step,
            decimals=column.decimals if decimals is None else decimals,
            levels=levels,
        )
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


def describe_columns(columns: Sequence[Column]) -> pd.DataFrame:
    """Return for each column what was found, how it is used, and the setting that changes it.

    The columns of the result are ``column``, ``found``, ``used`` and ``change``.
    """
    flags = {column.name: column for column in columns if column.is_flag}
    rows = [
        _describe(column, flags.get(column.name))
        for column in columns
        if not column.is_flag and column.kind != "indicator"
    ]
    return pd.DataFrame(rows, columns=["column", "found", "used", "change"])


def _describe(column: Column, flag: Column | None) -> tuple[str, str, str, str]:
    low, high = (
        f"{value:.{12 if value.is_integer() else 6}g}" for value in (column.low, column.high)
    )
    if column.dates is not None:
        low, high = column.restore_dtype(np.array([column.low, column.high])).astype(str)
    extent = f"{low} to {high}"
    match column.kind:
        case "ignored":
            kinds = {"no values": "", "complex numbers": ""}
            if column.dtype.startswith("int"):
                kinds["identifiers"] = "integer"
            kind = kinds.get(column.reason, "category")
            found, used = column.reason, "not used"
            kind = "number" if found.startswith("a multiple") else kind
        case "constant":
            found, used, kind = f"one value: {(column.names or [low])[0]}", "not used", ""
        case "categorical":
            found = f"{len(column.names)} categories: {named(column.names)}"
            used, kind = "as categories", "ignore"
        case _ if column.dates is not None:
            found, used, kind = f"dates, {extent}", "as numbers of seconds", "ignore"
        case "quantized":
            grid = len(column.levels) if column.levels else f"steps of {column.step:.6g}"
            found = f"numbers, {extent}, " + (f"{grid} values" if column.levels else f"in {grid}")
            used, kind = "with noise over the step", "ignore"
        case _:
            found, used, kind = f"numbers, {extent}", "as they are", "ignore"
    if column.texts:
        found += f"; {column.text_share:.1%} text ({named(column.texts)})"
    if flag is not None or column.missing == "category":
        share = dict((flag or column).categories or ())[MISSING] - column.text_share
        found += f"; {share:.1%} missing" if share > SMALL else ""
    if flag is not None:
        used += ", and a flag of missing values"
    if _may_be_categories(column):
        kind = "category"
    return column.name, found, used, kind and _setting(column.name, kind)


def _setting(name: str, kind: str) -> str:
    """Return the value of --params that sets the kind of a column, quoted for a shell."""
    if re.fullmatch(r"\w[\w -]*", name):
        return shlex.quote(f"data.columns.{name}={kind}")
    return shlex.quote(f"data.columns={{{json.dumps(name, ensure_ascii=False)}: {kind}}}")


def _may_be_categories(column: Column) -> bool:
    """Return whether few integers, or few numbers with text among them, may be codes."""
    if column.kind != "quantized" or column.dates is not None:
        return False
    is_integer = column.decimals == 0 and not column.dtype.startswith("timedelta")
    is_code = is_integer and math.log2(3) <= column.bits <= math.log2(MAX_CODES)
    return is_code or (bool(column.texts) and column.bits <= FEW_BITS)
