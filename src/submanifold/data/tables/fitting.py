"""Kinds of columns by a few rules, and their standardization, from the rows of a table.

1. Text, and pandas' categories, are categories.
2. A column of one value, up to rounding errors, is constant.
3. Numbers that are multiples of a step, at most 65,536 of them, are quantized (integers, decimals).
4. At most 256 numbers, each of which ten rows have on average, are quantized: each is a level.
5. All other numbers are continuous.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError
from submanifold.data.tables.columns import (
    Column,
    ColumnProblem,
    is_text,
    matching,
    named,
    to_numbers,
)

if TYPE_CHECKING:
    from submanifold.data.settings import Categorical, ColumnKind, Missing, Scale

MAX_STEPS, MAX_DECIMALS = 2**16, 9
MAX_LEVELS, MIN_REPEATS = 256, 10
MAX_CATEGORIES = 256
PREFIX = 1000
"""First values of a column, which rule out most steps of long columns."""
TOLERANCE, MAX_TOLERANCE = 4.0, 0.01
"""Rounding errors of a value that is a multiple of a step: units of the last place, steps."""
PRECISIONS = {"float16": 2.0**-11, "float32": 2.0**-24}
"""Relative rounding errors of types, others than that of float64."""
MAX_ROUNDING = 8
"""Largest range of a constant column, in rounding errors of its values."""
MIN_RESOLUTION = 2.0**-22
"""Smallest step, or hundredth of a deviation, of the largest value without standardization."""
MAX_VALUE = 1e150
MIN_ROWS = 2


def fit_columns(
    frame: pd.DataFrame, kinds: Mapping[str, ColumnKind], categorical: Categorical,
    missing: Missing, scale: Scale, training: np.ndarray | None = None,
) -> tuple[Column, ...]:  # fmt: skip
    """Find the kind and the standardization of each column; see :meth:`.Preprocessor.fit`."""
    matching("columns", kinds, frame)
    frame = frame[[name for name in frame if kinds.get(str(name)) != "ignore"]]
    training = np.ones(len(frame), bool) if training is None else training
    if missing == "drop":
        complete = frame.notna().all(axis=1).to_numpy()
        frame, training = frame[complete], training[complete]
    if training.sum() < MIN_ROWS:
        raise UserError(
            f"rows: expected at least {MIN_ROWS} training rows"
            f"{' without missing values' if missing == 'drop' else ''}, got {training.sum()}. Use "
            "a larger table."
        )
    columns: list[Column] = []
    problems: dict[str, list[str]] = {}  # columns with details
    for name, values in frame.items():
        try:
            columns.append(
                _fit(values, kinds.get(str(name)), categorical, missing, scale, training)
            )
        except ColumnProblem as problem:
            what, details = problem.args
            problems.setdefault(what, []).append(f"{name}{details}")
    if problems:
        got = "; ".join(f"{what} in {named(names)}" for what, names in problems.items())
        raise UserError(
            f"columns: expected finite numbers, got {got}. Correct or convert them, leave columns "
            "out with data.drop, or set data.missing=median for missing values and "
            "data.categorical=intervals for text."
        )
    return tuple(columns)


def _fit(
    values: pd.Series, kind: ColumnKind | None, categorical: Categorical, missing: Missing,
    scale: Scale, training: np.ndarray,
) -> Column:  # fmt: skip
    """Describe a column from its training rows; check all rows."""
    if values[training].isna().all():
        raise ColumnProblem("no values")
    if missing == "refuse" and (absent := int(values.isna().sum())):
        raise ColumnProblem("missing values", f" ({absent:,})")
    column = Column(str(values.name), "constant", str(values.dtype))
    if kind == "category" or (kind is None and is_text(values)):
        if kind is None and categorical == "refuse":
            raise ColumnProblem("text")
        return _fit_categories(column, values[training], missing == "median")
    numbers = to_numbers(values)
    numbers = numbers[training & ~np.isnan(numbers)]
    if missing == "median":
        column = replace(column, fill=float(np.quantile(numbers, 0.5, method="lower")))
    return _fit_numbers(column, numbers, kind, scale)


def _fit_categories(column: Column, values: pd.Series, fills: bool) -> Column:
    """Describe a column of names; the most frequent one is the first."""
    counts = Counter(values.dropna().astype(str))
    if len(counts) > MAX_CATEGORIES:
        raise ColumnProblem(f"more than {MAX_CATEGORIES} categories")
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
    """Describe a column of finite numbers."""
    precision = PRECISIONS.get(column.dtype.lower(), 2.0**-53)
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    column = replace(column, low=low, high=high, origin=low)
    if high - low <= MAX_ROUNDING * precision * largest:
        return column
    if largest > MAX_VALUE or high - low < 1 / MAX_VALUE:
        raise ColumnProblem(f"values beyond {MAX_VALUE:g}, or a range below {1 / MAX_VALUE:g},")
    mean, deviation = float((values - low).mean()), float((values - low).std())
    step, decimals, levels = _find_step(values, precision)
    if kind == "integer" and step is None:
        raise ColumnProblem(f"no step, or more than {MAX_STEPS:,},")
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
            raise ColumnProblem("differences that float32 cannot represent (data.scale=none)")
        return replace(column, offset=-column.origin, scale=1.0)
    return column


def _find_step(
    values: np.ndarray, precision: float
) -> tuple[float | None, int | None, tuple[float, ...] | None]:
    """Find the step of a quantized column, its decimals, and its values if they are on no grid."""
    low, high = values.min(), values.max()
    for part in (values[:PREFIX], values):
        step, decimals = _grid(part, precision)
        if math.isnan(step) or (step and high - low > MAX_STEPS * step):
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
