"""Finding the kind and the standardization of each column of a table."""

import json
import logging
import math
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types
from pandas.tseries.api import guess_datetime_format

from submanifold.data.fields import ColumnKind, Scale
from submanifold.data.tables.columns import (
    MAX_CATEGORIES,
    MAX_EXACT,
    MAX_NAMED,
    Categorical,
    Column,
    ColumnProblem,
    Constant,
    Continuous,
    Date,
    Logarithmic,
    Quantized,
    TableError,
    category_names,
    named,
    to_numbers,
)

log = logging.getLogger(__name__)

MAX_STEPS, MAX_DECIMALS = 2**16, 9
MIN_REPEATS = 10  #: Rows below which all values may differ in a column of categories.
PREFIX = 1000  #: First values of a column, which rule out most steps of long columns.
TOLERANCE, MAX_TOLERANCE = 4.0, 0.01
"""Rounding errors of a value that is a multiple of a step: units of the last place, steps."""
PRECISIONS = {"float16": 2.0**-11, "float32": 2.0**-24}
"""Relative rounding errors of types, others than that of float64."""
MAX_ROUNDING = 8  #: Largest range of a constant column, in rounding errors of its values.
MIN_RESOLUTION = 2.0**-22
"""Smallest step, or hundredth of a deviation, of the largest value without standardization."""
MAX_VALUE = 1e150
DAY = 86_400 * 10**6  #: Microseconds.
FORMATTED = re.compile(r"[-+]?[%$€£¥]?\s?\d[\d.,' ]*\s?[%$€£¥]?")
"""Text of a number with units or marks, whose meaning is not clear."""
SHORT_DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2}( .*)?")
"""Text of a date whose year has two digits, so that it may be the day."""


def fit_columns(
    frame: pd.DataFrame, training: np.ndarray, kinds: Mapping[str, ColumnKind], scale: Scale
) -> list[Column]:
    """Describe the columns of a table by its training rows, and check all rows.

    1. Dates are numbers of seconds. Text of few values, and pandas' categories, are categories.
    2. A column of one value, up to rounding errors, or of none is constant.
    3. Numbers that are multiples of a step, at most 65,536 of them, are quantized (integers,
       decimals).
    4. Other numbers are logarithmic if they are positive and of several orders of magnitude
       (:meth:`.Logarithmic.suits`), unless their kind is set.
    5. All other numbers are continuous.

    Text among numbers, and infinities, are missing values. Other columns, of which it is not clear
    what they mean, and columns that are not of a set kind raise a :class:`.TableError`.
    """
    columns, problems = list[Column](), list[ColumnProblem]()
    for name, values in frame.items():
        try:
            columns.append(_fit_column(values, training, kinds.get(str(name)), scale))
        except ColumnProblem as problem:
            problems.append(problem)
    if problems:
        raise TableError(problems, "Correct these values, or leave these columns out")
    counted = [column.name for column in columns if _counts_rows(column, frame[column.name])]
    if counted:
        log.warning(
            "columns %s: every row has another integer, as identifiers do; leave them out (in a "
            "pipeline by data.drop), unless their order has a meaning",
            named(counted),
        )
    return columns


def missing_values(values: pd.Series, kind: ColumnKind | None) -> np.ndarray:
    """Return where a column has no value (N,); text and infinities are none among numbers."""
    numbers, is_text = to_numbers(values, next(iter(_date_formats(values, kind)), None))
    is_category = kind == "category" or (kind is None and _is_text(values, numbers, is_text))
    return values.isna().to_numpy() if is_category else np.isnan(numbers)


def _fit_column(
    values: pd.Series, training: np.ndarray, kind: ColumnKind | None, scale: Scale
) -> Column:
    inferred, name = types.infer_dtype(values), str(values.name)
    if inferred == "complex":
        raise ColumnProblem("complex numbers", name)
    dtype = "boolean" if inferred == "boolean" else str(values.dtype)  # also with missing values
    facts: dict[str, Any] = {"name": name, "dtype": dtype}
    formats = _date_formats(values, kind)
    if len(formats) > 1:
        texts = values.dropna()
        raise ColumnProblem(f"dates such as {texts.iloc[0]} without a clear month", name)
    form = formats[0] if formats else None
    numbers, is_text = to_numbers(values, form)
    if kind is None and _is_text(values, numbers, is_text):
        _check_text(values)
        kind = "category"
    if kind == "category":
        return _fit_categories(values, training, facts)
    is_missing = np.isnan(numbers)
    known = numbers[training & ~is_missing]
    if not len(known):
        if kind is not None:
            raise ColumnProblem("no numbers", name)
        return Constant.fit(values[:0], **facts)
    facts["missing"] = _missing_share(is_missing, training)
    if not types.is_numeric_dtype(values.dtype):
        _check_marks(values[is_text])
        counts = Counter(values[training & is_text].astype(str))
        facts["texts"] = tuple(text for text, _ in counts.most_common(MAX_NAMED + 1))
    precision = PRECISIONS.get(dtype.lower(), 2.0**-53)
    is_constant = np.ptp(known) <= MAX_ROUNDING * precision * abs(known).max()
    grid = None if is_constant else _find_grid(known, kind, scale, precision, name)
    if (is_constant or grid) and _are_rounded(values, numbers):
        if kind is not None or not _has_few_values(values):
            raise ColumnProblem("integers beyond 2^53, which are not kept exactly,", name)
        return _fit_categories(values, training, {"name": name, "dtype": dtype})
    if is_constant:
        return Constant.fit(values[training & ~is_missing], name=name, dtype=dtype)
    facts["grid"] = grid
    is_scaled = scale == "standard"
    if kind is None and form is None and is_scaled and Logarithmic.suits(known):
        return Logarithmic.fit(known, **facts)
    facts["is_scaled"] = is_scaled
    if form is not None:
        return Date.fit(known, format=form, unit_us=_resolution(known), **facts)
    return Quantized.fit(known, **facts) if grid else Continuous.fit(known, **facts)


def _is_text(values: pd.Series, numbers: np.ndarray, is_text: np.ndarray) -> bool:
    """Return whether values are pandas' categories, or more often text than numbers."""
    is_category = isinstance(values.dtype, pd.CategoricalDtype)
    return is_category or bool(is_text.sum() > np.isfinite(numbers).sum())


def _check_text(values: pd.Series) -> None:
    """Raise a ColumnProblem for text that may be something else than categories."""
    texts = values.dropna().astype(str)
    if not isinstance(values.dtype, pd.CategoricalDtype):
        if texts.map(SHORT_DATE.fullmatch).notna().all():
            raise ColumnProblem(f"dates such as {texts.iloc[0]} without a clear year", values.name)
        if texts.map(FORMATTED.fullmatch).notna().all():
            _check_marks(texts)
    if not _has_few_values(values):
        raise ColumnProblem(f"text of {texts.nunique():,} different values", values.name)


def _check_marks(texts: pd.Series) -> None:
    """Raise a ColumnProblem for a number with units, a decimal comma, or several marks."""
    marked = [text for text in texts.astype(str) if FORMATTED.fullmatch(text)]
    if marked:
        what = f"text of numbers with units, a comma or several marks, such as {marked[0]!r},"
        raise ColumnProblem(what, texts.name)


def _has_few_values(values: pd.Series) -> bool:
    """Return whether values repeat so often that they can be categories."""
    texts = values.dropna().astype(str)
    count = texts.nunique()
    return count <= MAX_CATEGORIES and not (2 * count > len(texts) > 2 * MIN_REPEATS)


def _missing_share(is_missing: np.ndarray, training: np.ndarray) -> float:
    """Return the share of the training rows, above 0 if any row has no value."""
    least = 1 / training.sum() if is_missing.any() else 0.0
    return float(max(is_missing[training].mean(), least))


def _fit_categories(values: pd.Series, training: np.ndarray, facts: dict[str, Any]) -> Column:
    known = values[training].dropna()
    if category_names(known).nunique() < 2:
        return Constant.fit(known, **facts)
    facts["missing"] = _missing_share(values.isna().to_numpy(), training)
    return Categorical.fit(known, **facts)


def _counts_rows(column: Column, values: pd.Series) -> bool:
    """Return whether integers are consecutive and all different, as the numbers of rows are."""
    if not isinstance(column, Quantized) or len(values) <= 2 * MIN_REPEATS:
        return False
    if not types.is_integer_dtype(values.dtype):
        return False
    return values.is_unique and bool(values.max() - values.min() == len(values) - 1)


def _are_rounded(values: pd.Series, numbers: np.ndarray) -> bool:
    """Return whether values are integers that float64 does not represent."""
    largest = np.nanmax(abs(numbers), initial=0)
    if largest <= MAX_EXACT or types.infer_dtype(values) != "integer":
        return False
    integers = values.dropna().astype(object)
    return any(int(float(integer)) != integer for integer in integers)


def _date_formats(values: pd.Series, kind: ColumnKind | None) -> list[str]:
    """Return the formats of dates as text, one that is empty for pandas' types of dates.

    There are none without dates, and two if the day can be before the month or after it.
    """
    inferred = types.infer_dtype(values)
    if kind not in (None, "number"):
        return []
    if inferred.startswith("date"):
        return [""]
    texts = values.dropna()
    if inferred != "string" or not len(texts):
        return []
    with warnings.catch_warnings(action="ignore"):  # of an order that the first text excludes
        formats = [guess_datetime_format(texts.iloc[0], is_first) for is_first in (False, True)]
    return [
        form
        for form in dict.fromkeys(formats)
        if form
        and "%d" in form
        and pd.to_datetime(texts, format=form, errors="coerce").notna().all()
    ]


def _resolution(seconds: np.ndarray) -> int:
    """Return the largest unit in microseconds of which all times are multiples."""
    for unit in (DAY, 10**6, 10**3):
        scaled = seconds * (10**6 / unit)
        if (abs(scaled - np.rint(scaled)) < 10**3 / unit).all():
            return unit
    return 1


def _find_grid(
    values: np.ndarray, kind: ColumnKind | None, scale: Scale, precision: float, name: str
) -> tuple[float, int] | None:
    """Find the step of quantized values and their decimals, and check the range of all values."""
    extent, largest = float(np.ptp(values)), float(abs(values).max())
    if largest > MAX_VALUE or extent < 1 / MAX_VALUE:
        what = f"values beyond {MAX_VALUE:g}, or a range below {1 / MAX_VALUE:g},"
        raise ColumnProblem(what, name)
    step, decimals = 0.0, 0
    for part in (values[:PREFIX], values):  # more values only decrease the step
        step, decimals = _grid(part, precision)
        if math.isnan(step) or (step and extent > MAX_STEPS * step):
            step = math.nan
            break
    if kind == "integer" and math.isnan(step):
        raise ColumnProblem(f"no step, or more than {MAX_STEPS:,},", name)
    is_continuous = math.isnan(step) or kind == "number"
    resolution = float(values.std()) / 100 if is_continuous else step
    if scale == "none" and resolution < MIN_RESOLUTION * largest:
        raise ColumnProblem("differences that float32 cannot represent (scale=none)", name)
    return None if is_continuous else (step, decimals)


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
    rows = []
    for column in columns:
        found, used, change = column.found, column.used, kind_setting(column.name, "ignore")
        if column.missing:
            found += f"; {column.missing:.1%} missing"
            found += f", such as {named(column.texts)}" if column.texts else ""
            used += ", given which are missing"
        if isinstance(column, Constant):
            change = ""
        elif isinstance(column, Logarithmic):
            change = kind_setting(column.name, "number")
        elif isinstance(column, Continuous | Quantized) and (column.few or column.texts):
            change = kind_setting(column.name, "category")
        rows.append((column.name, found, used, change))
    return pd.DataFrame(rows, columns=["column", "found", "used", "change"])


def kind_setting(name: str, kind: str) -> str:
    """Return the value of --params that sets the kind of a column, quoted for a shell."""
    if re.fullmatch(r"\w[\w -]*", name):
        return shlex.quote(f"data.columns.{name}={kind}")
    return shlex.quote(f"data.columns={{{json.dumps(name, ensure_ascii=False)}: {kind}}}")
