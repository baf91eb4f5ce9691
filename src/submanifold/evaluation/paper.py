"""The numbers printed in Razavi et al. 2022, tables 1 to 5."""

from importlib.resources import files

import pandas as pd

from submanifold.evaluation.metrics import NONE, is_missing


def results() -> pd.DataFrame:
    """Read ``paper.csv``, by ``metric`` (a :attr:`.Metric.column`); a missing spread is NaN."""
    with files("submanifold.evaluation").joinpath("paper.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def write(value: float | None, spread: float | None) -> str:
    """Format a number and its spread as printed, ``3.98 ± 0.03``; a dash if it is missing."""
    if value is None or is_missing(value):
        return NONE
    text = f"{value:,g}" if value < 1e5 else f"{value:,.0f}"
    return text if is_missing(spread) else f"{text} ± {spread:g}"
