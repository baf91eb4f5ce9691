"""Means over the seeds of an experiment, with 95% intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from submanifold.evaluation.intervals import plus_minus

INTERVAL = ("value", "low", "high")
EQUAL = 1e-5  # relative difference of equal numbers, one of which was read from a file


def over_seeds(values: Sequence[Any]) -> dict[str, Any]:
    """Average the values of several seeds.

    Args:
        values: Of each seed, a number, or a mapping with ``value``, ``low`` and ``high``.

    Returns:
        ``value``, ``low`` and ``high``. With one seed, or equal values, the interval is that of
        the first seed, over test images; otherwise it is that of the mean over seeds. All are None
        if a seed has no value.
    """
    measured = [each if isinstance(each, Mapping) else {"value": each} for each in values]
    numbers: list[Any] = [each.get("value") for each in measured]
    if None in numbers:
        return dict.fromkeys(INTERVAL)
    if np.allclose(numbers, numbers[0], rtol=EQUAL, atol=0):
        return {name: measured[0].get(name) for name in INTERVAL}
    return interval_over_seeds(numbers)


def interval_over_seeds(numbers: Sequence[float]) -> dict[str, float]:
    """Mean of two or more seeds with its 95% interval by Student's t."""
    n = len(numbers)
    error = np.std(numbers, ddof=1) / np.sqrt(n)
    return plus_minus(float(np.mean(numbers)), float(student_t.ppf(0.975, n - 1) * error))


def count_seeds(count: int) -> str:
    """Return ``one seed``, ``2 seeds``, ..."""
    return "one seed" if count == 1 else f"{count} seeds"
