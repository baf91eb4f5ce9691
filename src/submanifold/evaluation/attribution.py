"""Contributions of columns to the anomaly of a row."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch

from submanifold.common.progress import ProgressBar
from submanifold.data.batches import as_input, context_tensor
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.scores import SMOOTHED_DENSITY, score_batch
from submanifold.flows import conditioning, is_noise_conditional
from submanifold.models import Model

EXPLAINED_ROWS, EXPLAINED_COLUMNS = 16, 3
"""Most anomalous rows, and columns of each."""
BATCH_SIZE = 4096

LEVELS = np.linspace(0.05, 0.95, 10)
"""Quantiles of a column that replace its value."""
MAX_REFERENCE = 10_000
"""Rows that determine the quantiles."""
LARGEST = 1e30
"""Replaces scores that are not finite."""


def column_contributions(
    function: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    reference: np.ndarray,
    is_equal: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Compute how much the score of a row decreases if a single column changes.

    The contribution of column j to the score s(x) is

    .. math:: s(x) - \min_c s(x_1, \dots, x_{j-1}, c, x_{j+1}, \dots, x_D)

    over quantiles c of the column from 5% to 95% and its present value (reconstruction-based
    contribution: Alcala & Qin 2009). A row that is anomalous in one column has one large
    contribution; a row with an unusual combination has one for each column whose change resolves
    it.

    Args:
        function: Function from rows (n, D) to scores (n,); larger scores are more anomalous.
        rows: The rows to explain (N, D).
        reference: Usual rows (M, D), such as training data; at most 10,000 are used.
        is_equal: Whether the values of columns are equal to the user, (n, D) for rows (n, D) and
            (n, D). Equal values, such as other dequantizations of an integer, are not tried.

    Returns:
        The contributions (N, D), at least 0, and the values (N, D) that attain them.

    Example:
        >>> rows, usual = np.array([[9.0, 0.1]]), np.random.default_rng(0).normal(size=(500, 2))
        >>> found, values = column_contributions(lambda x: np.square(x).sum(1), rows, usual)
        >>> bool(found[0, 0] > 80), bool(found[0, 1] < 0.02)
        (True, True)
    """
    some = reference[:: -(-len(reference) // MAX_REFERENCE)]
    quantiles, columns = np.quantile(some, LEVELS, axis=0), np.arange(rows.shape[1])
    contributions, values = np.zeros(rows.shape), rows.copy()
    with ProgressBar("contributions of columns", "rows", len(rows)) as progress:
        for index, row in enumerate(rows):
            changed = np.tile(row, (len(columns), len(LEVELS), 1))
            changed[columns, :, columns] = quantiles.T
            scores = function(np.concatenate([row[None], changed.reshape(-1, len(row))]))
            scores = np.nan_to_num(scores, nan=LARGEST, posinf=LARGEST)
            by_level = scores[1:].reshape(len(columns), len(LEVELS))
            if is_equal is not None:
                for number, tried in enumerate(changed):
                    equal = is_equal(np.broadcast_to(row, tried.shape), tried)[:, number]
                    by_level[number, equal] = scores[0]
            contributions[index] = (scores[0] - by_level.min(1)).clip(0)
            best = changed[columns, by_level.argmin(1), columns]
            values[index] = np.where(contributions[index] > 0, best, row)
            progress.update(1)
    return contributions, values


def explain_rows(
    model: Model,
    preprocessor: Preprocessor,
    test: np.ndarray,
    scored: pd.DataFrame,
    train: np.ndarray,
) -> pd.DataFrame:
    """Find the columns that contribute most to the most anomalous rows.

    The contributions are increases of the log-density, smoothed if the model is noise-conditional,
    or decreases of the squared distance from the manifold if the model has no density.

    Args:
        model: The model.
        preprocessor: The transformation to the units of the table.
        test: Test rows (N, D).
        scored: Their scores, a table with ``number``, ``nll``, and with a calibration
            ``anomaly_score`` and ``p_value``.
        train: Training rows (M, D).

    Returns:
        A table with up to 3 entries for each of 16 rows, in decreasing order of the anomaly score:
        ``number``, ``p_value`` and ``nll`` of the row, ``column``, its ``value``, the
        ``contribution`` (nats), and the ``usual`` value that attains it, in the units of the table.
    """
    quantity = "density" if model.has_density else "encoder_distance"
    if model.has_density and is_noise_conditional(model):
        quantity = SMOOTHED_DENSITY
    order = "anomaly_score" if "anomaly_score" in scored else "nll"
    worst = scored.sort_values(order, ascending=False, kind="stable")[:EXPLAINED_ROWS]
    chosen = test[worst["number"].to_numpy()]
    rows = np.asarray(chosen)
    names = [each.name for each in preprocessor.varying]
    device = next(model.parameters()).device

    def anomaly(x: np.ndarray) -> np.ndarray:
        parts = np.array_split(x, -(-len(x) // BATCH_SIZE))
        scores = (score_batch(model, as_input(each).to(device), each, (quantity,))[quantity]
                  for each in parts)  # fmt: skip
        return torch.cat(list(scores)).cpu().numpy()

    def is_equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        both = (preprocessor.inverse_transform(each)[names].astype(str) for each in (a, b))
        return np.equal(*(each.to_numpy() for each in both))

    explain = partial(column_contributions, anomaly, reference=np.asarray(train), is_equal=is_equal)
    if (contexts := context_tensor(chosen, device)) is None:
        contributions, usual = explain(rows)
    else:
        explained = []
        for row, context in zip(rows, contexts, strict=True):
            with conditioning(model, context[None]):
                explained.append(explain(row[None]))
        contributions, usual = map(np.concatenate, zip(*explained, strict=True))
    given, replaced = map(preprocessor.inverse_transform, (rows, usual))
    found = []
    for index, (_, row) in enumerate(worst.iterrows()):
        about = {"number": int(row["number"])} | {
            name: row.get(name) for name in ("p_value", "nll")
        }
        for number in np.argsort(-contributions[index], kind="stable")[:EXPLAINED_COLUMNS]:
            column = names[number]
            found.append({
                **about,
                "column": column,
                "value": _text(given[column].iloc[index]),
                "contribution": contributions[index, number],
                "usual": _text(replaced[column].iloc[index]),
            })  # fmt: skip
    return pd.DataFrame(found)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
