"""Contributions of columns to the anomaly of a row."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.common.progress import ProgressBar
from submanifold.data.batches import as_input, to_context
from submanifold.data.events import Events, EventsLike, as_events
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.preprocessor import UNKNOWN_NATS
from submanifold.evaluation.metrics import format_value, is_missing
from submanifold.evaluation.scores import SMOOTHED_DENSITY, score_batch
from submanifold.flows import is_noise_conditional
from submanifold.flows.context import Context
from submanifold.models import Model

EXPLAINED_ROWS, EXPLAINED_COLUMNS = 16, 3  # most anomalous rows, and columns of each

LEVELS = np.linspace(0.05, 0.95, 10)  # quantiles of a column that replace its value
MAX_REFERENCE = 10_000  # training rows that determine the quantiles
LARGEST = 1e30  # instead of scores that are not finite
DIGITS = 6  # of values


def column_contributions(
    score: Callable[[np.ndarray], np.ndarray],
    row: np.ndarray,
    quantiles: np.ndarray,
    shown: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    r"""Compute how much the score of a row decreases if a single column changes.

    The contribution of column j to the score s(x) is

    .. math:: s(x) - \min_c s(x_1, \dots, x_{j-1}, c, x_{j+1}, \dots, x_D)

    over quantiles c of the column and its present value (reconstruction-based contribution: Alcala
    & Qin 2009). A row that is anomalous in one column has one large contribution; a row with an
    unusual combination has one for each column whose change resolves it. Values that are ``shown``
    as equal, such as other dequantizations of an integer, are not tried. Returns the contributions
    (D,), at least 0, and the values (D,) that attain them.
    """
    columns = np.arange(len(row))
    changed = np.tile(row, (len(columns), len(quantiles), 1))
    changed[columns, :, columns] = quantiles.T
    rows = np.concatenate([row[None], changed.reshape(-1, len(row))])
    scores, values = np.nan_to_num(score(rows), nan=LARGEST, posinf=LARGEST), shown(rows)
    by_level = scores[1:].reshape(len(columns), len(quantiles))
    is_equal = (values[1:] == values[0]).reshape(changed.shape)[columns, :, columns]
    by_level[is_equal] = scores[0]
    contributions = (scores[0] - by_level.min(1)).clip(0)
    best = changed[columns, by_level.argmin(1), columns]
    return contributions, np.where(contributions > 0, best, row)


def explain_rows(
    hierarchy: Model,
    train: Events,
    test: Events,
    scored_events: pd.DataFrame,
    device: str,
) -> pd.DataFrame:
    """Explain the 16 most anomalous test rows (:func:`explain`), with p-values and densities."""
    model, scored = hierarchy.to(choose_device(device)), scored_events.query("split == 'test'")
    order = "anomaly_score" if "anomaly_score" in scored else "nll"
    worst = scored.sort_values(order, ascending=False, kind="stable")[:EXPLAINED_ROWS]
    numbers = worst["number"].to_numpy()
    chosen = test[numbers]
    explained = explain(model, chosen, column_quantiles(train.x))
    scores = worst.reindex(columns=["p_value", "nll"]).set_axis(np.asarray(chosen.rows))
    scores = scores.iloc[explained.pop("number")].rename_axis("row").reset_index()
    return pd.concat([scores, explained], axis=1)


def column_quantiles(x: np.ndarray) -> np.ndarray:
    """Return the values that :func:`explain` tries, (levels, D), from standardized rows (N, D)."""
    return np.quantile(x[:: -(-len(x) // MAX_REFERENCE)], LEVELS, axis=0)


def explain(
    model: Model, events: EventsLike, quantiles: np.ndarray, table: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Find the three columns that contribute most to the anomaly of standardized rows (N, D).

    The contributions are increases of the log-density, smoothed if the model is noise-conditional,
    or decreases of the squared distance from the manifold if the model has no density. Categories
    of the ``table`` of the rows that the training data do not have add :data:`.UNKNOWN_NATS`, and
    so do other values of columns that were constant, if the log-density is smoothed.
    Missing values do not contribute.

    Returns entries of the ``number`` of a row, ``column``, ``value``, ``contribution``, and
    ``usual``, the value with which the row is least anomalous. Values are text without separators
    of thousands, or "missing".
    """
    weight, preprocessor = next(model.parameters()), Preprocessor.from_dict(model.data["table"])
    smooth = SMOOTHED_DENSITY if is_noise_conditional(model) else "density"
    quantity = smooth if model.has_density else "encoder_distance"
    events, names = as_events(events), [*preprocessor.features]
    x, contexts = events.x, to_context(events, weight.device)
    values = preprocessor.inverse_transform(events) if table is None else table
    unknown = preprocessor.unknown(values).reindex(columns=names, fill_value=False).to_numpy()
    changed = preprocessor.changed(values)
    if quantity != SMOOTHED_DENSITY:
        changed = changed.iloc[:, :0]
    is_missing = np.zeros(x.shape, bool)
    is_missing[:, preprocessor.maskable] = preprocessor.missing(events.context, len(x))

    def anomaly(x: np.ndarray, context: Context | None) -> np.ndarray:
        if context is not None:
            context = context.repeat(len(x))
        scores = score_batch(model, as_input(x).to(weight), x, (quantity,), context)
        return scores[quantity].cpu().numpy()

    def shown(x: np.ndarray) -> np.ndarray:
        return preprocessor.inverse_transform(x)[names].astype(str).to_numpy()

    entries = []
    with ProgressBar("contributions of columns", "rows", len(x)) as progress:
        for number, row in enumerate(x):
            of_row = partial(anomaly, context=None if contexts is None else contexts.rows([number]))
            contributions, usual = column_contributions(of_row, row, quantiles, shown)
            contributions[is_missing[number]] = 0
            contributions[unknown[number]] += UNKNOWN_NATS
            of_changed = changed.columns[changed.iloc[number]]
            contributions = np.append(contributions, np.full(len(of_changed), UNKNOWN_NATS))
            usual_values = preprocessor.inverse_transform(usual[None])
            for coordinate in np.argsort(-contributions, kind="stable")[:EXPLAINED_COLUMNS]:
                name = [*names, *of_changed][coordinate]
                texts = map(_text, (values[name].iloc[number], usual_values[name].iloc[0]))
                entries.append((number, name, next(texts), contributions[coordinate], next(texts)))
            progress.update(1)
    return pd.DataFrame(entries, columns=["number", "column", "value", "contribution", "usual"])


def _text(value: object) -> str:
    return "missing" if is_missing(value) else format_value(value, DIGITS, comma="")
