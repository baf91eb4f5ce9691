"""The transformation between rows of a table and the standardized vectors of a model."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from submanifold.common.errors import UserError, did_you_mean, printable, unexpected
from submanifold.data.fields import ColumnKind, Scale
from submanifold.data.tables.columns import (
    MISSING,
    Column,
    ColumnProblem,
    TableError,
    matching,
    named,
    to_numbers,
)
from submanifold.data.tables.fit import describe_columns, fit_columns

log = logging.getLogger(__name__)

Table: TypeAlias = "pd.DataFrame | np.ndarray | Sequence[Sequence[float]]"

COLUMNS = TypeAdapter(tuple[Column, ...])
LOG_2_PI = math.log(2 * math.pi)
GOLDEN, *MIX = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
UNKNOWN_NATS = math.log(1e6)
"""By how much a category that the training data do not have is less likely than the rarest one."""
HASH_STEPS, MAX_HASHED = 2.0**16, 2.0**32  #: Rounding of standardized values before their hash.


@dataclass(frozen=True)
class Preprocessor:
    """Maps the rows of a table to standardized vectors, and vectors to rows.

    Quantized columns are dequantized: uniform noise over their step is added, as it is for the
    bytes of images, and missing numbers become normal noise. The noise is determined by the row's
    values, so that the result for a row does not depend on other rows. Of a condition, each
    category is one of the ``columns``.

    Example:
        >>> table = pd.DataFrame({"age": [31, 45, np.nan, 27], "city": ["A", "B", "A", "A"]})
        >>> preprocessor = Preprocessor.fit(table)
        >>> preprocessor.features
        ('age', 'age=missing', 'city')
        >>> x = preprocessor.transform(table)
        >>> x.shape, x.dtype
        ((4, 3), dtype('float32'))
        >>> preprocessor.inverse_transform(x).equals(table)
        True
    """

    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()  #: Other columns of the training table.

    @classmethod
    def fit(
        cls,
        table: Table,
        *,
        columns: Mapping[str, ColumnKind] | None = None,
        scale: Scale = "standard",
        training: np.ndarray | None = None,
    ) -> "Preprocessor":
        """Find the kind and the standardization of each column, see :func:`.fit_columns`.

        Args:
            table: A DataFrame, or an array (N, columns), whose columns are named x0, x1, ...
            columns: Kinds of columns by name, instead of those that are found.
            scale: ``standard`` or ``none``, see :class:`.TableFields`.
            training: Mask (N,) of the rows that determine the result; all rows are checked.
        """
        frame, kinds = as_frame(table), columns or {}
        matching("columns", kinds, frame)
        frame = frame[[name for name in frame if kinds.get(str(name)) != "ignore"]]
        training = np.ones(len(frame), bool) if training is None else training
        return cls(tuple(fit_columns(frame, training, kinds, scale)))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the table's columns, including constant and ignored ones."""
        return tuple(dict.fromkeys(column.name for column in self.columns))

    @cached_property
    def categories(self) -> dict[str, set[str]]:
        """The categories of the training data by column."""
        known: dict[str, set[str]] = {}
        for column in self.columns:
            if column.categories and not column.is_flag:
                known.setdefault(column.name, set()).update(column.names)
        return known

    @cached_property
    def varying(self) -> tuple[Column, ...]:
        """The columns that are coordinates of the model."""
        unused = "constant", "ignored"
        return tuple(column for column in self.columns if column.kind not in unused)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the model's coordinates, (D,)."""
        return tuple(column.feature for column in self.varying)

    @cached_property
    def has_noise(self) -> bool:
        """Whether rows are dequantized: a column is quantized or has categories or a flag."""
        return any(column.step is not None for column in self.varying)

    @property
    def description(self) -> pd.DataFrame:
        """What was found and is done for each column, see :func:`.describe_columns`."""
        return describe_columns(self.columns)

    @cached_property
    def flags(self) -> dict[int, int]:
        """Coordinates of flags by those of their numbers."""
        flags = {column.name: index for index, column in enumerate(self.varying) if column.is_flag}
        return {
            index: flags[column.name]
            for index, column in enumerate(self.varying)
            if column.missing == "noise" and column.name in flags
        }

    def split(self, names: Collection[str]) -> "tuple[Preprocessor, Preprocessor]":
        """Return preprocessors of the other columns, and of those with these names.

        The latter does not dequantize, and has an indicator of each category.
        """
        others = [column for column in self.columns if column.name not in names]
        chosen = [column for column in self.columns if column.name in names]
        condition = [part for column in chosen for part in column.as_condition]
        parts = (Preprocessor(tuple(part), self.ignored) for part in (others, condition))
        return next(parts), next(parts)

    def transform(self, table: Table, salt: np.ndarray | None = None) -> np.ndarray:
        """Dequantize and standardize rows, float32 (N, D).

        A missing column, and missing values of a column without them in the training table, raise
        a UserError.

        Args:
            table: A DataFrame, whose columns are found by name, or an array with as many columns as
                the training table. Columns that the model does not know are ignored with a warning.
            salt: Integers (N,) that the noise also depends on, to give equal training rows
                different noise.
        """
        return self._dequantized(self._snapped(table), salt)[0]

    def redraw(self, x: np.ndarray, salt: int) -> tuple[np.ndarray, np.ndarray]:
        r"""Dequantize transformed rows x (N, D) with other noise, which salt and row determine.

        Returns the new x, and log-weights -log q (N,) of the noise in standard units but for a
        constant, so that the log-density of a row is the log of the mean of
        :math:`p(x) / q(x)` over draws, plus :meth:`log_dets`. With missing values it is that of the
        others and of the flags.
        """
        columns = zip(self.varying, np.nan_to_num(self._checked(x)).T, strict=True)
        snapped = np.stack([column.floor(column.restore(values)) for column, values in columns], 1)
        for number, flag in self.flags.items():
            snapped[snapped[:, flag] == 1, number] = np.nan
        drawn, log_weights = self._dequantized(snapped, np.full(len(x), salt))
        is_exact = ~np.isnan(snapped) & [column.step is None for column in self.varying]
        drawn[is_exact] = np.asarray(x)[is_exact]  # without rounding
        drawn[np.isnan(x).any(1)] = np.nan
        return drawn, log_weights

    def inverse_transform(self, x: np.ndarray) -> pd.DataFrame:
        """Map vectors to rows of the table, with its names, units and types.

        Quantized columns are rounded down to their grid; constant columns have their value. Rows
        with infinities or NaN are missing values.
        """
        x = self._checked(x)
        is_finite = np.isfinite(x).all(1)
        x = np.where(is_finite[:, None], x, 0)
        features = dict(zip(self.features, x.T, strict=True))
        frame: dict[str, Any] = {}
        for name, parts in groupby(self.columns, lambda column: column.name):
            first, *others = parts
            flags = [column for column in others if column.is_flag]
            if first.kind == "ignored":
                continue
            if first.kind == "constant":
                values: Any = np.full(len(x), first.names[0] if first.names else first.origin)
            elif first.kind == "indicator":
                indicators = [first, *others]
                shares = [column.restore(features[column.feature]) for column in indicators]
                names = np.array([column.names[0] for column in indicators])
                values = first.without_missing(names[np.argmax(shares, 0)])
            else:
                values = first.inverse_transform(features[name])
            frame[name] = first.restore_dtype(values)
            for flag in flags:
                is_missing = flag.restore(features[flag.feature]) >= flag.cutoff
                frame[name] = pd.Series(frame[name]).mask(is_missing)
        rows = pd.DataFrame(frame)
        return rows if is_finite.all() else rows.where(pd.Series(is_finite), axis=0)

    def unknown(self, table: Table) -> pd.DataFrame:
        """Return which values of a table are categories that the training data do not have."""
        frame = as_frame(table, self.inputs).reset_index(drop=True)
        first = {column.name: column for column in reversed(self.columns)}
        return pd.DataFrame(
            {
                name: frame[name].notna() & ~first[name].categories_of(frame[name]).isin(known)
                for name, known in self.categories.items()
                if name in frame
            },
            frame.index,
        )

    def beyond(self, table: Table) -> pd.Series:
        """Return the share of the rows that are beyond the training rows, by column of numbers."""
        frame, shares = as_frame(table, self.inputs), dict[str, float]()
        for column in self.varying:
            if column.kind in ("continuous", "quantized"):
                numbers, _ = to_numbers(frame[column.name], column.dates)
                shares[column.name] = ((numbers < column.low) | (numbers > column.high)).mean()
        return pd.Series(shares, dtype=float)

    @property
    def log_det(self) -> float:
        """The log-determinant of the standardization of rows without missing values.

        Added to the log-density of transformed rows (:meth:`redraw`) it gives the log-density in
        the units of the table: of its dequantized values, and of categories their probability.
        """
        return -sum(math.log(column.scale) for column in self.varying)

    def log_dets(self, x: np.ndarray) -> np.ndarray:
        """Return the log-determinants (N,) of transformed rows (N, D): missing numbers have 1."""
        log_scales = [math.log(self.varying[number].scale) for number in self.flags]
        return self.log_det + self.missing_numbers(x) @ np.array(log_scales, np.float64)

    def missing_numbers(self, x: np.ndarray) -> np.ndarray:
        """Return where numbers of transformed rows (N, D) are noise, (N, columns with flags)."""
        return self.missing(x)[:, : len(self.flags)]

    def missing(self, x: np.ndarray) -> np.ndarray:
        """Return where rows (N, D) have missing values, by column (:attr:`missing_codes`)."""
        x, columns = self._checked(x), self.varying
        cells = (
            columns[index].cell(columns[index].restore(x[:, index])) == code
            for index, code in self.missing_codes.items()
        )
        return np.stack([np.zeros(len(x), bool), *cells], 1)[:, 1:]

    @cached_property
    def missing_codes(self) -> dict[int, int]:
        """Coordinates of flags and categories, and their category of missing values.

        The flags of numbers are first, in the order of the numbers.
        """
        codes = dict.fromkeys(self.flags.values(), 1)
        return codes | {
            index: column.names.index(MISSING)
            for index, column in enumerate(self.varying)
            if column.kind == "categorical" and (column.is_flag or column.missing == "category")
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable description."""
        columns = COLUMNS.dump_python(self.columns, mode="json", exclude_defaults=True)
        return {"columns": columns, "ignored": [*self.ignored]}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Preprocessor":
        """Rebuild a preprocessor from :meth:`to_dict`; a UserError if the columns are others."""
        try:
            columns = COLUMNS.validate_python(description["columns"])
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, ("columns", *problem["loc"])))
            fix = "Train the model again"
            raise unexpected(name, "those of a table", problem["msg"], fix) from None
        return cls(columns, tuple(description.get("ignored", ())))

    def _checked(self, x: np.ndarray) -> np.ndarray:
        if np.ndim(x) != 2 or np.shape(x)[1] != len(self.varying):
            raise UserError(f"x: expected shape (N, {len(self.varying)}), got {np.shape(x)}.")
        return np.asarray(x, np.float64)

    def _snapped(self, table: Table) -> np.ndarray:
        """Check a table, and return values minus the origins, float64 (N, D)."""
        frame = self.check_names(as_frame(table, self.inputs))
        values, problems = np.empty((len(frame), len(self.varying))), list[ColumnProblem]()
        for j, column in enumerate(self.varying):
            try:
                values[:, j] = column.snap(_values_of(frame[column.name], column))
            except ColumnProblem as problem:
                problems.append(problem)
        if problems:
            fix = "The training rows have none there; correct these values, or omit their rows"
            raise TableError(problems, fix)
        self._warn(frame)
        return values

    def _dequantized(
        self, snapped: np.ndarray, salt: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return standardized rows (N, D) of values minus the origins, and log-weights (N,)."""
        x, log_weights = np.empty(snapped.shape, np.float32), np.zeros(len(snapped))
        columns, is_missing = [*enumerate(self.varying)], np.isnan(snapped)
        standard = [column.standardize(snapped[:, j]) for j, column in columns]
        counts = 2 if is_missing.any() else 1
        noise = uniform_by_content(np.nan_to_num(np.stack(standard, 1)), salt, counts)
        for j, column in columns:
            shifted = column.dequantize(snapped[:, j], noise[:, j])
            x[:, j] = column.transform(shifted)
            log_weights += np.nan_to_num(column.log_weight(shifted))
            if (rows := is_missing[:, j]).any():
                first, second = noise[rows, j], noise[rows, len(columns) + j]
                # Box & Muller (1958)
                normal = np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)
                x[rows, j] = normal if column.missing == "noise" else 0
                log_weights[rows] += (normal**2 + LOG_2_PI) / 2 * (column.missing == "noise")
        return x, log_weights

    def _warn(self, frame: pd.DataFrame) -> None:
        changed = []
        for column in self.columns:
            if column.kind == "constant" and not column.names and column.name in frame:
                numbers, _ = to_numbers(frame[column.name], column.dates)
                if ((numbers < column.low) | (numbers > column.high)).any():
                    changed.append(column.name)
        if changed:
            log.warning(
                "constant in the training data but not here, and ignored: %s", named(changed)
            )
        for name, is_unknown in self.unknown(frame).items():
            if is_unknown.any():
                names = sorted(set(frame[str(name)][is_unknown.to_numpy()].astype(str)))
                log.warning(
                    "column %s: the training data have no category %s; its rows are anomalies",
                    named([str(name)]),
                    named(names),
                )

    def check_names(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the known columns, with a warning of others; raise UserError for missing ones."""
        needed = dict.fromkeys(column.name for column in self.varying)
        if missing := [name for name in needed if name not in frame]:
            expected = f"the columns of the training table ({named(needed)})"
            hint = did_you_mean(missing[0], map(str, frame))
            raise unexpected("columns", expected, f"a table without {named(missing)}", hint=hint)
        is_known = frame.columns.isin(self.inputs)
        extra = frame.columns[~is_known].difference([*self.ignored], sort=False)
        if len(extra):
            log.warning("columns %s are unknown to the model; they are ignored", named(extra))
        return frame.loc[:, is_known]


def _values_of(values: pd.Series, column: Column) -> np.ndarray:
    """Return numbers, the numbers of categories (of unknown ones the last), or an indicator."""
    if column.categories is not None and not column.is_flag:
        is_missing, texts = values.isna().to_numpy(), column.categories_of(values)
        if column.kind == "indicator":
            return (texts == column.names[0]).to_numpy(np.float64)
        index = pd.Index(column.names).get_indexer(pd.Index(texts))
        numbers = np.where(index < 0, column.high, index)
    else:
        numbers, is_text = to_numbers(values, column.dates)
        is_missing = np.isnan(numbers)
        if column.missing == "refused" and not column.is_flag and is_text.any():
            first, row = printable(str(values[is_text].iloc[0])), values.index[is_text][0]
            example = f"({is_text.sum():,}, such as {first!r} in row {row})"
            raise ColumnProblem("text or infinities", f"{column.name} {example}")
    if column.is_flag:
        return is_missing.astype(np.float64)
    if column.missing == "refused" and is_missing.any():
        raise ColumnProblem("missing values", f"{column.name} ({is_missing.sum():,})")
    return numbers


def as_frame(table: Table, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a DataFrame whose columns have text as names, for arrays the given ones or x0, ..."""
    if isinstance(table, pd.DataFrame):
        frame = table.set_axis(table.columns.map(str), axis=1)
        if (twice := frame.columns[frame.columns.duplicated()]).any():
            raise UserError(f"columns: expected different names, got {named(twice)} twice.")
        return frame
    array = np.asarray(table)
    if array.ndim != 2 or (names is not None and array.shape[1] != len(names)):
        expected = f"{len(names)} columns ({named(names)})" if names else "(rows, columns)"
        raise UserError(f"table: expected an array of {expected}, got shape {array.shape}.")
    return pd.DataFrame(array, columns=[*(names or map("x{}".format, range(array.shape[1])))])


def uniform_by_content(
    values: np.ndarray, salt: np.ndarray | None = None, per_value: int = 1
) -> np.ndarray:
    """Draw numbers in (0, 1) that only the values in the same row and its salt determine.

    Their shape is (N, D), or (N, ``per_value`` D).

    The generator is SplitMix64 (Steele, Lea & Flood 2014), seeded by a hash of the standardized
    row. Values are rounded, so that a copy of a row in other units has the same noise.
    """
    salts = np.zeros(len(values)) if salt is None else np.asarray(salt)
    fixed = np.rint(HASH_STEPS * values.clip(-MAX_HASHED, MAX_HASHED)).astype(np.int64)
    state = torch.from_numpy(salts.astype(np.int64))
    for column in torch.from_numpy(fixed).unbind(1):
        state = mix(state ^ column)
    return uniform(state, per_value * values.shape[1]).numpy()


def uniform(state: Tensor, count: int) -> Tensor:
    """Draw numbers (N, count) from states, int64 (N,), with operators that ONNX has."""
    steps = torch.from_numpy(np.arange(1, count + 1) * GOLDEN)
    return (_shifted(mix(state[:, None] + steps), 12).double() + 0.5) * 2.0**-52


def mix(state: Tensor) -> Tensor:
    """Scramble states, int64 of any shape."""
    state = state + GOLDEN
    for factor, bits in zip(MIX, (30, 27), strict=True):
        state = (state ^ _shifted(state, bits)) * factor
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & (2 ** (64 - bits) - 1)
