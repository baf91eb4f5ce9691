"""Sentences that name the best of several runs, with what their intervals do not separate."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from submanifold.evaluation.metrics import Metric, is_missing

MAX_NAMES = 3
BEST = " has the best "


def interval(row: pd.Series, column: str) -> dict[str, Any]:
    """Return a measurement of a run with its ends, which may be missing."""
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {end: row.get(f"{column}{suffix}") for end, suffix in ends.items()}


def best_sentence(
    table: pd.DataFrame, column: str, metric: Metric, label: Callable[[pd.Series], str]
) -> str | None:
    """Name the run with the lowest value, and the runs whose intervals overlap with its interval.

    Args:
        table: One run per row.
        column: Column of the metric; its ends are ``<column>_low`` and ``<column>_high``.
        metric: The metric, of which lower values are better.
        label: Returns the name of a run.

    Returns:
        The sentence, or None if there are not two different values.
    """
    if table[column].nunique() < 2:
        return None
    is_best = table[column] == table[column].min()
    row, others = table[is_best].iloc[0], table[~is_best]
    text = f"{label(row)}{BEST}{metric.phrase}, {metric.write(interval(row, column))}"
    high, low = row.get(f"{column}_high"), others.get(f"{column}_low")
    if low is not None and not is_missing(high):
        near = [label(other) for _, other in others[low <= high].iterrows()]
        if near:
            text += f"; the interval{'s' if len(near) > 1 else ''} of {_listed(near)} "
            text += f"overlap{'' if len(near) > 1 else 's'} with it"
    return f"{text}."


def joined(sentences: Iterable[str | None]) -> list[str]:
    """Join sentences of :func:`best_sentence` about the same run; None is left out.

    Example:
        >>> joined(["a has the best BPD, 3.", "a has the best MSE, 1.", None])
        ['a has the best BPD, 3, and the best MSE, 1.']
    """
    found: list[str] = []
    for text in filter(None, sentences):
        subject = f"{text.partition(BEST)[0]}{BEST}"
        if found and found[-1].startswith(subject) and "; the interval" not in found[-1]:
            found[-1] = f"{found[-1][:-1]}, and the best {text.removeprefix(subject)}"
        else:
            found.append(text)
    return found


def _listed(names: Sequence[str]) -> str:
    if len(names) > MAX_NAMES + 1:
        return f"{', '.join(names[:MAX_NAMES])} and {len(names) - MAX_NAMES} others"
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
