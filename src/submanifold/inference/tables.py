"""Score, encode, project, and sample the rows of a table with a trained model.

Rows are DataFrames with the columns of the training table, in any order, and results are in the
units of the table. A model that is conditional on columns finds them in the same table by name; its
densities and coordinates are those of the other columns. All functions raise a
:class:`~submanifold.common.errors.UserError` for tables that do not fit the model.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError
from submanifold.data.arrays import with_context
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.columns import named
from submanifold.evaluation.calibration import HUGE, Calibration
from submanifold.inference import scoring
from submanifold.models import Model

BATCH_SIZE = 4096


def preprocessor_of(model: Model) -> Preprocessor:
    """Return the preprocessor of a model of a table.

    Raises:
        UserError: The model was not trained on a table.
    """
    if "table" not in model.data:
        kind = "images" if "size" in model.data else "points"
        raise UserError(f"model: expected a model of a table, got one of {kind}.")
    return Preprocessor.from_dict(model.data["table"])


def condition_of(model: Model) -> Preprocessor | None:
    """Return the preprocessor of the columns that a model of a table is conditional on, if any."""
    if "table" not in model.data or "condition" not in model.data:
        return None
    return Preprocessor.from_dict(model.data["condition"])


def columns_of(model: Model) -> Preprocessor:
    """Return the preprocessor of all columns: those that a model describes, and the condition."""
    preprocessor, condition = preprocessor_of(model), condition_of(model)
    if condition is None:
        return preprocessor
    return Preprocessor(preprocessor.columns + condition.columns)


def score_table(model: Model, table: pd.DataFrame, exact: bool = False) -> pd.DataFrame:
    """Score rows: densities, distances from the manifold, and p-values.

    Args:
        model: A calibrated model of a table.
        table: The rows.
        exact: Whether to compute the nearest projections as well, which takes longer.

    Returns:
        The columns of :func:`.scoring.score_events` by row, with the index of the table;
        ``log_prob`` is the log-density in nats in the units of the table. Squared errors are in
        standardized units. With columns of categories also ``unknown_category``: rows with a
        category that the training data do not have get the smallest p-value.
    """
    calibration = scoring.load_calibration(model)
    parts = [pd.DataFrame(score_rows(model, calibration, rows, exact)) for rows in _split(table)]
    return pd.concat(parts, ignore_index=True).set_axis(table.index)


def score_rows(
    model: Model, calibration: Calibration, table: pd.DataFrame, exact: bool = False,
    hashes: list[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Score a batch of rows: the columns of :func:`score_table`; see :func:`.score_event_batch`."""
    columns = scoring.score_event_batch(model, calibration, to_events(model, table), exact, hashes)
    if "log_prob" in columns:
        preprocessor = preprocessor_of(model)
        rows = table if condition_of(model) is None else _select(table, preprocessor)
        columns["log_prob"] = columns["log_prob"] + preprocessor.log_det(rows)
        del columns["bits_per_dim"]  # of standardized columns
    known = columns_of(model)
    if known.categories:
        unknown = columns["unknown_category"] = known.unknown(table).any(axis=1).to_numpy()
        columns["p_value"][unknown] = calibration.smallest_p_value
        columns["anomaly_score"][unknown] = HUGE
    return columns


def encode_table(model: Model, table: pd.DataFrame, exact: bool = False) -> pd.DataFrame:
    """Encode rows as coordinates on the manifold, ``u0``, ..., and off the manifold, ``v0``, ...

    With ``exact``, u is that of the nearest projection. The result has the index of the table.
    """
    x = to_events(model, table)
    return code_frame(*scoring.encode_events(model, x, exact, BATCH_SIZE)).set_axis(table.index)


def code_frame(u: np.ndarray, v: np.ndarray) -> pd.DataFrame:
    """Return coordinates u (N, d) and v (N, D - d) as columns ``u0``, ..., ``v0``, ..."""
    names = [f"{name}{number}" for name, each in (("u", u), ("v", v))
             for number in range(each.shape[1])]  # fmt: skip
    return pd.DataFrame(np.concatenate([u, v], 1), columns=names)


def project_table(
    model: Model, table: pd.DataFrame, exact: bool = False
) -> tuple[pd.DataFrame, np.ndarray]:
    """Project rows onto the manifold.

    Returns:
        The projections, with the columns that the model describes and the index of the table, and
        their mean squared errors (N,) in standardized units.
    """
    projections, errors = scoring.project_events(model, to_events(model, table), exact, BATCH_SIZE)
    return preprocessor_of(model).inverse_transform(projections).set_axis(table.index), errors


def sample_table(
    model: Model, count: int, temperature: float, seed: int, condition: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Sample rows on the manifold; see :func:`.scoring.sample_events`.

    Args:
        model: A model of a table.
        count: Number of samples, or for a model that is conditional on columns of samples for each
            row of ``condition``.
        temperature: 0 to 10.
        seed: Seed of the samples.
        condition: The columns of the condition; those that the model describes are not needed.

    Returns:
        The samples; for a conditional model after the columns of the condition, with the index of
        its rows.
    """
    preprocessor, given = preprocessor_of(model), condition_of(model)
    if given is None:
        return preprocessor.inverse_transform(
            scoring.sample_events(model, count, temperature, seed)
        )
    if condition is None:
        needed = dict.fromkeys(each.name for each in given.varying)
        raise UserError(
            "condition: expected a table with the columns that the density is conditional on "
            f"({named(needed)}), got none. Pass one, "
            "or on the command line: submanifold sample MODEL table.csv."
        )
    condition = condition.drop(columns=[*preprocessor.inputs], errors="ignore")
    context = given.transform(condition)
    samples = scoring.sample_events(model, count, temperature, seed, context)
    repeated = _select(condition, given).iloc[np.arange(len(condition)).repeat(count)]
    found = preprocessor.inverse_transform(samples).set_axis(repeated.index)
    return pd.concat([repeated, found], axis=1)


def to_events(model: Model, batch: np.ndarray | pd.DataFrame) -> np.ndarray:
    """Convert rows of a table to standardized vectors; images and vectors stay as they are.

    Vectors for a model that is conditional on columns have these as their context
    (:func:`.with_context`).
    """
    if not isinstance(batch, pd.DataFrame):
        return batch
    preprocessor, condition = preprocessor_of(model), condition_of(model)
    if condition is None:
        return preprocessor.transform(batch)
    batch = columns_of(model).check_names(batch)
    context = condition.transform(_select(batch, condition))
    return with_context(preprocessor.transform(_select(batch, preprocessor)), context)


def _select(table: pd.DataFrame, preprocessor: Preprocessor) -> pd.DataFrame:
    """Return the columns of a table that a preprocessor knows."""
    return table[[name for name in table.columns if str(name) in preprocessor.inputs]]


def _split(table: pd.DataFrame) -> list[pd.DataFrame]:
    if table.empty:
        raise UserError("table: expected at least one row, got none.")
    return [table.iloc[start : start + BATCH_SIZE] for start in range(0, len(table), BATCH_SIZE)]
