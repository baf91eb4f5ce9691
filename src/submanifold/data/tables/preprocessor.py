"""The transformation between rows of a table and the standardized vectors of a model."""

import base64
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter, ValidationError

from submanifold.common.errors import UserError, did_you_mean, printable, unexpected
from submanifold.data.events import Events, EventsLike, as_events
from submanifold.data.fields import ColumnKind, Scale
from submanifold.data.tables.columns import (
    Categorical,
    Column,
    ColumnProblem,
    Constant,
    TableError,
    Varying,
    matching,
    named,
)
from submanifold.data.tables.encoder import SMALLEST_NOISE, RowEncoder
from submanifold.data.tables.fit import describe_columns, fit_columns

log = logging.getLogger(__name__)

Table: TypeAlias = "pd.DataFrame | np.ndarray | Sequence[Sequence[float]]"

COLUMNS = TypeAdapter(tuple[Annotated[Column, Field(discriminator="kind")], ...])
UNKNOWN_NATS = math.log(1e6)
"""By how much a category that the training data do not have is less likely than the rarest one."""
MAX_MASKS = 4096  #: Masks of training rows that are kept, for samples.
DRAWN_AGAIN = 2**32  #: Salt of draws; rows of a table have smaller ones, their numbers.


@dataclass(frozen=True)
class Preprocessor:
    """Maps the rows of a table to standardized vectors, and vectors to rows.

    Quantized columns and categories are dequantized: uniform noise over their step is added, as it
    is for the bytes of images. Missing values become noise from N(0, 1), and the mask of them, of
    the columns with missing values in the training table, is the context of the vectors
    (:class:`.Events`). The noise is determined by the row's values, so that the result for a row
    does not depend on other rows.

    Example:
        >>> table = pd.DataFrame({"age": [31, 45, np.nan, 27], "city": ["A", "B", "A", "A"]})
        >>> preprocessor = Preprocessor.fit(table)
        >>> events = preprocessor.transform(table)
        >>> events.x.shape, events.x.dtype, events.context.ravel().tolist()
        ((4, 2), dtype('float32'), [0.0, 0.0, 1.0, 0.0])
        >>> preprocessor.inverse_transform(events).equals(table)
        True
    """

    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()  #: Other columns of the training table.
    masks: str = ""  #: Masks of training rows, in base64 (:meth:`draw_missing`).

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
        fitted = cls(tuple(fit_columns(frame, training, kinds, scale)))
        rows = frame[training]
        numbers = fitted._numbers(rows[:: max(1, -(-len(rows) // MAX_MASKS))])
        return fitted._with_masks(np.isnan(numbers)[:, fitted.maskable])

    def _with_masks(self, is_missing: np.ndarray) -> "Preprocessor":
        packed = np.packbits(is_missing, axis=1).tobytes()
        return replace(self, masks=base64.b64encode(packed).decode())

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the table's columns, including constant ones."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def categorical(self) -> dict[str, Categorical]:
        """The columns of categories by name."""
        return {column.name: column for column in self.columns if isinstance(column, Categorical)}

    @cached_property
    def varying(self) -> tuple[Varying, ...]:
        """The columns that are coordinates of the model."""
        return tuple(column for column in self.columns if not isinstance(column, Constant))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the model's coordinates, (D,)."""
        return tuple(column.name for column in self.varying)

    @cached_property
    def encoder(self) -> RowEncoder:
        """The encoder of all varying columns."""
        return RowEncoder(self.varying)

    @cached_property
    def maskable(self) -> np.ndarray:
        """Coordinates (M,) of the columns that may have missing values."""
        return np.flatnonzero([column.missing > 0 for column in self.varying])

    @property
    def has_noise(self) -> bool:
        """Whether rows have noise: a column is quantized, has categories or missing values."""
        return bool(self.encoder.is_discrete.any() or len(self.maskable))

    @property
    def description(self) -> pd.DataFrame:
        """What was found and is done for each column, see :func:`.describe_columns`."""
        return describe_columns(self.columns)

    def split(self, names: Collection[str]) -> "tuple[Preprocessor, Preprocessor]":
        """Return preprocessors of the other columns, and of those with these names."""
        parts, masked = [], [self.varying[index].name for index in self.maskable]
        for is_chosen in (False, True):
            columns = [column for column in self.columns if (column.name in names) == is_chosen]
            part = Preprocessor(tuple(columns), self.ignored)
            parts.append(part._with_masks(self._masks[:, np.isin(masked, part.inputs)]))
        return parts[0], parts[1]

    def transform(self, table: Table, salt: np.ndarray | None = None) -> Events:
        """Dequantize and standardize rows, float32 (N, D), whose context is :meth:`missing`.

        Their changes are those of :meth:`changes`.

        There is no context if no column may have missing values. A missing column, and missing
        values of a column without them in the training table, raise a UserError.

        Args:
            table: A DataFrame, whose columns are found by name, or an array with as many columns as
                the training table. Columns that the model does not know are ignored with a warning.
            salt: Integers (N,) that the noise also depends on, to give equal training rows
                different noise.
        """
        numbers = self._numbers(as_frame(table, self.inputs))
        x, _ = self.encoder.encode(
            numbers, self.encoder.noise(numbers, 0 if salt is None else salt)[0]
        )
        mask = np.isnan(numbers)[:, self.maskable].astype(np.float32)
        return Events(x, mask if mask.shape[1] else None, changes=self.changes(table))

    def indicators(self, table: Table) -> np.ndarray:
        """Standardize the columns of a condition, float32 (N, C).

        Each category is an indicator. Missing values have the mean, and their mask follows.
        """
        frame = self.check_names(as_frame(table, self.inputs))
        numbers, parts = self._numbers(frame), list[np.ndarray]()
        x = self.encoder.standardize(self.encoder.middles(numbers))
        for column, of_column, standard in zip(self.varying, numbers.T, x.T, strict=True):
            if isinstance(column, Categorical):
                is_known = ~column.unknown(frame[column.name])[:, None]
                shares = np.array(column.shares)
                indicator = (of_column[:, None] == np.arange(len(shares))) & is_known
                values = (indicator - shares) / np.sqrt(shares * (1 - shares))
            else:
                values = standard[:, None]
            parts.append(np.where(np.isnan(of_column)[:, None], 0, values))
        mask = np.isnan(numbers)[:, self.maskable]
        return np.concatenate([*parts, mask], axis=1).astype(np.float32)

    @property
    def indicator_count(self) -> int:
        """Number C of the columns of :meth:`indicators`."""
        names = sum(len(column.names) - 1 for column in self.categorical.values())
        return len(self.varying) + names + len(self.maskable)

    def redraw(self, x: np.ndarray, context: np.ndarray | None, seed: int) -> np.ndarray:
        """Draw the noise of transformed rows x (N, D) again, which the seed determines."""
        numbers = self.encoder.decode(x, self._is_missing(context, len(x)))
        noise = np.random.Generator(np.random.Philox(seed)).random(x.shape)
        return self.encoder.encode(numbers, noise.clip(SMALLEST_NOISE))[0]

    def draw(
        self, x: np.ndarray, context: np.ndarray | None, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Draw the noise of transformed rows x (N, D) again, by their values, ``count`` times.

        Returns vectors (count, N, D), and log-weights -log q (count, N) of the noise in standard
        units but for a constant, so that the log-density of the observed values of a row is the log
        of the mean of :math:`p(x) / q(x)` over draws, plus :meth:`log_dets`.
        """
        x, is_missing = np.asarray(x), self._is_missing(context, len(x))
        numbers = self.encoder.decode(np.nan_to_num(x), is_missing)
        noise = self.encoder.noise(numbers, DRAWN_AGAIN, count)
        draws = [self.encoder.encode(numbers, of_draw) for of_draw in noise]
        drawn, log_weights = (np.stack(parts) for parts in zip(*draws, strict=True))
        is_exact = ~is_missing & ~self.encoder.is_discrete
        drawn = np.where(is_exact, x, drawn)
        drawn[:, np.isnan(x).any(1)] = np.nan
        return drawn, log_weights

    def without_noise(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Replace the noise of transformed rows x (N, D): float32 (N, D), such as for distances.

        Quantized columns and categories are in the middle of their step, and missing values are 0,
        the mean.
        """
        numbers = self.encoder.decode(np.asarray(x), self._is_missing(context, len(x)))
        return self.encoder.encode(numbers, np.full(numbers.shape, 0.5))[0]

    def copies(self, events: Events) -> np.ndarray:
        """Return for each transformed row (N,) the number of the first row that it is a copy of.

        Copies are equal rows with a continuous value that no other row has: equal rows of counts or
        categories alone are as frequent in new tables.

        Example:
            >>> table = pd.DataFrame({"size": [0.1234567891, np.pi, np.pi, 0.1234567891, np.e]})
            >>> preprocessor = Preprocessor.fit(table)
            >>> preprocessor.copies(preprocessor.transform(table)).tolist()
            [0, 1, 1, 0, 4]
        """
        places = self.without_noise(events.x, events.context)
        _, first, group = np.unique(places, axis=0, return_index=True, return_inverse=True)
        is_copied = np.zeros(len(first), bool)
        for column in places[:, ~self.encoder.is_discrete].T:
            _, value = np.unique(column, return_inverse=True)
            values, groups = np.unique(np.stack([value, group]), axis=1)
            is_copied[groups] |= np.bincount(values)[values] == 1
        return np.where(is_copied[group], first[group], np.arange(len(places)))

    def inverse_transform(
        self, x: EventsLike, context: np.ndarray | None = None, *, clip: bool = False
    ) -> pd.DataFrame:
        """Map vectors x (N, D) to rows of the table, with its names, units and types.

        Quantized columns are rounded down to their grid, and with ``clip``, for samples, are in the
        range of the training rows, so that counts are not negative; constant columns have their
        value. Values are missing where the mask in the ``context`` (by default that of x) says so,
        and in rows with infinities or NaN.
        """
        events = as_events(x)
        context = events.context if context is None else context
        vectors = self._checked(events.x)
        is_finite = np.isfinite(vectors).all(1)
        is_missing = self._is_missing(context, len(vectors)) | ~is_finite[:, None]
        known = np.where(is_finite[:, None], vectors, 0)
        numbers = self.encoder.decode(known, np.zeros(known.shape, bool))
        of_column = {
            column.name: (values, missing)
            for column, values, missing in zip(self.varying, numbers.T, is_missing.T, strict=True)
        }
        frame: dict[str, Any] = {}
        for column in self.columns:
            if isinstance(column, Constant):
                values, missing = column.decode(len(vectors)), ~is_finite
            else:
                numbers, missing = of_column[column.name]
                values = column.decode(column.clip(numbers) if clip else numbers)
            frame[column.name] = pd.Series(values).mask(missing) if missing.any() else values
        return pd.DataFrame(frame)

    def unknown(self, table: Table) -> pd.DataFrame:
        """Return which values of a table are categories that the training data do not have."""
        frame = as_frame(table, self.inputs).reset_index(drop=True)
        columns = {name: column for name, column in self.categorical.items() if name in frame}
        unknown = {name: column.unknown(frame[name]) for name, column in columns.items()}
        return pd.DataFrame(unknown, frame.index)

    def changed(self, table: Table) -> pd.DataFrame:
        """Return which values of a table differ from those of columns that were constant."""
        frame = as_frame(table, self.inputs).reset_index(drop=True)
        constant = [column for column in self.columns if isinstance(column, Constant)]
        changed = {
            column.name: column.differs(frame[column.name]) if column.name in frame else False
            for column in constant
        }
        return pd.DataFrame(changed, frame.index)

    def changes(self, table: Table) -> np.ndarray | None:
        """Return the numbers (N,) of values that are :meth:`changed`; None without constants."""
        changed = self.changed(table)
        return changed.to_numpy().sum(axis=1) if len(changed.columns) else None

    def beyond(self, table: Table) -> pd.Series:
        """Return the share of the rows that are beyond the training rows, by column of numbers."""
        frame, shares = as_frame(table, self.inputs), dict[str, float]()
        for column in self.varying:
            if not isinstance(column, Categorical):
                numbers = column.to_numbers(frame[column.name])
                shares[column.name] = ((numbers < column.low) | (numbers > column.high)).mean()
        return pd.Series(shares, dtype=float)

    def log_dets(self, x: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Return the log-determinants (N,) of the standardization at transformed rows x (N, D).

        Added to their log-density (:meth:`draw`) they give the log-density in the units of the
        table: of its dequantized values, and of categories their probability. Missing values have
        a determinant of 1.
        """
        return self.encoder.log_dets(x, self._is_missing(context, len(x)))

    def missing(self, context: np.ndarray | None, count: int) -> np.ndarray:
        """Return the mask (count, M) of missing values in a context, which it starts with."""
        if context is None or not len(self.maskable):
            return np.zeros((count, len(self.maskable)), bool)
        return np.asarray(context)[:, : len(self.maskable)] > 0.5

    def _is_missing(self, context: np.ndarray | None, count: int) -> np.ndarray:
        """Return the mask of all columns (count, D)."""
        mask = np.zeros((count, len(self.varying)), bool)
        mask[:, self.maskable] = self.missing(context, count)
        return mask

    @cached_property
    def _masks(self) -> np.ndarray:
        packed = np.frombuffer(base64.b64decode(self.masks), np.uint8)
        size = len(self.maskable)
        rows = packed.reshape(-1, max(1, -(-size // 8)))
        return np.unpackbits(rows, axis=1, count=size).astype(bool)

    def draw_missing(self, count: int, seed: int) -> np.ndarray | None:
        """Draw masks of training rows, float32 (count, M); None without missing values."""
        if not len(self.maskable):
            return None
        chosen = np.random.default_rng(seed).integers(len(self._masks), size=count)
        return self._masks[chosen].astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable description."""
        columns = COLUMNS.dump_python(self.columns, mode="json")
        return {"columns": columns, "ignored": [*self.ignored], "masks": self.masks}

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
        return cls(columns, tuple(description.get("ignored", ())), description.get("masks", ""))

    def _checked(self, x: np.ndarray) -> np.ndarray:
        if np.ndim(x) != 2 or np.shape(x)[1] != len(self.varying):
            raise UserError(f"x: expected shape (N, {len(self.varying)}), got {np.shape(x)}.")
        return np.asarray(x, np.float64)

    def _numbers(self, table: pd.DataFrame) -> np.ndarray:
        """Check a table, and return the numbers of its values, float64 (N, D)."""
        frame = self.check_names(table)
        numbers, problems = np.empty((len(frame), len(self.varying))), list[ColumnProblem]()
        for index, column in enumerate(self.varying):
            values = frame[column.name]
            numbers[:, index] = column.encode(values)
            is_missing = np.isnan(numbers[:, index])
            if is_missing.any() and not column.missing:
                problems.append(_problem(column.name, values, is_missing))
        if problems:
            fix = "The training rows have none there; correct these values, or omit their rows"
            raise TableError(problems, fix)
        self._warn(frame)
        return numbers

    def _warn(self, frame: pd.DataFrame) -> None:
        changed = self.changed(frame).any()
        if names := [str(name) for name in changed.index[changed]]:
            text = "constant in the training data but not here, and not part of the density: %s"
            log.warning(text, named(names))
        for name, is_unknown in self.unknown(frame).items():
            if is_unknown.any():
                names = sorted(set(frame[str(name)][is_unknown.to_numpy()].astype(str)))
                log.warning(
                    "column %s: the training data have no category %s; its rows are anomalies",
                    named([str(name)]),
                    named(names),
                )
        for column in self.varying:
            if isinstance(column, Categorical):
                continue
            values = frame[column.name]
            is_text = values.notna() & np.isnan(column.to_numbers(values))
            is_new = is_text & ~values.astype(str).isin(column.texts)
            if is_new.any():
                log.warning(
                    "column %s: values such as %r are no finite numbers, and count as missing "
                    "(%d of %d rows)",
                    named([column.name]),
                    printable(str(values[is_new].iloc[0])),
                    is_new.sum(),
                    len(values),
                )
            if (off_grid := column.off_grid(values)).any():
                log.warning(
                    "column %s: values between the training data's steps of %.6g, such as %s, are "
                    "rounded down (%d of %d rows)",
                    named([column.name]),
                    column.step,
                    printable(str(values[off_grid].iloc[0])),
                    off_grid.sum(),
                    len(values),
                )

    def check_names(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the known columns, with a warning of others; raise UserError for missing ones."""
        if missing := [name for name in self.features if name not in frame]:
            expected = f"the columns of the training table ({named(self.features)})"
            hint = did_you_mean(missing[0], map(str, frame))
            raise unexpected("columns", expected, f"a table without {named(missing)}", hint=hint)
        is_known = frame.columns.isin(self.inputs)
        extra = frame.columns[~is_known].difference([*self.ignored], sort=False)
        if len(extra):
            log.warning("columns %s are unknown to the model; they are ignored", named(extra))
        return frame.loc[:, is_known]


def events_of(
    inputs: Preprocessor,
    condition: Preprocessor | None,
    rows: pd.DataFrame,
    salt: np.ndarray | None = None,
) -> Events:
    """Transform rows; the context is the mask, and the :meth:`~.indicators` of a condition."""
    events = inputs.transform(rows[_names(inputs, rows)], salt)
    if condition is None:
        return events
    parts = [condition.indicators(rows[_names(condition, rows)])]
    if events.context is not None:
        parts.insert(0, events.context)
    return replace(events, context=np.concatenate(parts, axis=1))


def _names(preprocessor: Preprocessor, rows: pd.DataFrame) -> list[str]:
    return [name for name in preprocessor.inputs if name in rows]


def _problem(name: str, values: pd.Series, is_missing: np.ndarray) -> ColumnProblem:
    """Describe missing values of a column that may have none."""
    is_text = is_missing & values.notna().to_numpy()
    if not is_text.any():
        return ColumnProblem("missing values", f"{name} ({is_missing.sum():,})")
    first, row = printable(str(values[is_text].iloc[0])), values.index[is_text][0]
    example = f"({is_text.sum():,}, such as {first!r} in row {row})"
    return ColumnProblem("text or infinities", f"{name} {example}")


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
