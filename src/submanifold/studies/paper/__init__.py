"""Printed numbers as data: Razavi et al. 2022, tables 1 to 5, and those of others."""

from importlib.resources import files

import pandas as pd

PAPER_FLOW = {"type": "glow", "shape": [3, 32, 32], "levels": 3, "steps": 32, "width": 512}
"""The first stage of all methods, as a model describes a bijection."""


def results() -> pd.DataFrame:
    """Read the numbers: ``table``, ``dataset``, ``method``, ``stage_dims``, ``metric``, ``value``.

    Returns:
        A row for each, with the printed ``spread``, NaN where there is none; metrics are named by
        :attr:`submanifold.evaluation.metrics.Metric.column`.
    """
    with files("submanifold.studies.paper").joinpath("paper.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def published(page: str) -> dict[str, pd.DataFrame]:
    """Read what others have published, for a page of docs/ (``ood``, ``related``).

    Returns:
        By table: ``model``, ``value``, and its ``source``.
    """
    with (
        files("submanifold.studies.paper").joinpath("published.csv").open(encoding="utf-8") as file
    ):
        rows = pd.read_csv(file, dtype=str).fillna("–")
    of_page = rows[rows["page"] == page].drop(columns="page")
    return {str(name): table.drop(columns="table").reset_index(drop=True)
            for name, table in of_page.groupby("table", sort=False)}  # fmt: skip


def write(value: float | None, spread: float | None) -> str:
    """Write a number and its spread as printed, ``3.98 ± 0.03``; a dash for a missing one."""
    if value is None or pd.isna(value):
        return "–"
    text = f"{value:,g}" if value < 1e5 else f"{value:,.0f}"
    return text if spread is None or pd.isna(spread) else f"{text} ± {spread:g}"
