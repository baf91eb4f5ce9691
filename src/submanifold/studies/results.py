"""Means over seeds, and what the comparisons share."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from matplotlib.figure import Figure

from submanifold.evaluation.intervals import ENDS, over_seeds
from submanifold.evaluation.metrics import NONE, format_interval
from submanifold.runs.experiments import CachedRun
from submanifold.studies.pages import Content, Runs

Measured = dict[str, dict[str, Any]]  # value, and mostly low and high, by measure

KEYS = ("data", "row", "dim", "seed", "measure")  # of a row; `row` is the system


def by_seed(runs: Runs) -> Iterator[tuple[str, str, int, CachedRun]]:
    """Yield data set, system, seed and run of runs by labels ``<data>: <system>``."""
    for label, seeds in runs.items():
        data, _, system = label.partition(": ")
        for seed, run in enumerate(seeds):
            yield data, system, seed, run


def as_rows(measured: Measured, **keys: Any) -> list[dict[str, Any]]:
    """Write measures as rows of results, with ``value``, ``low``, ``high`` and the count ``n``."""
    return [
        {**keys, "measure": name, **{k: interval[k] for k in (*ENDS, "n") if k in interval}}
        for name, interval in measured.items()
    ]


def in_order(rows: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> pd.DataFrame:
    """Sort rows by the order of the systems, then by the other keys."""
    data = pd.DataFrame(rows)
    return data.sort_values(
        [name for name in KEYS[1:] if name in data],
        ignore_index=True,
        key=lambda column: column.map([*systems].index) if column.name == "row" else column,
    )


def summarize(data: pd.DataFrame, names: Iterable[str]) -> dict[str, dict[Any, Measured]]:
    """Average measures over seeds, by data set in order, and by system, or system and dimension.

    ``seconds`` are the smallest, since other work on the machine only adds to them.
    """
    by_name: dict[str, defaultdict[Any, Measured]] = {
        name: defaultdict(dict) for name in names if name in set(data["data"])
    }
    clean = data.astype(object).where(data.notna(), None)
    keys = [name for name in KEYS if name in data and name != "seed"]
    for key, rows in clean.groupby(keys, sort=False):
        name, *system, measure = cast(tuple[str, ...], key)
        summary = by_name[name][system[0] if len(system) == 1 else tuple(system)]
        summary[measure] = over_seeds(rows[list(ENDS)].to_dict("records"))
        if measure == "seconds":
            summary[measure] = {"value": rows["value"].min()}
        summary["seeds"] = {"value": max(len(rows), value(summary, "seeds") or 0)}
    return {name: dict(systems) for name, systems in by_name.items()}


def value(measured: Measured, measure: str) -> Any:
    """Return the value of a measure, or None."""
    return measured.get(measure, {}).get("value")


def table(rows: Mapping[Any, Measured], name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Format a table of measures, with a first column ``name``, without columns of no value.

    ``columns`` are the measures and formats of columns, such as ``"bits_per_dim .3f"``.
    """
    cells = []
    for key, measured in rows.items():
        row = {name: key}
        for label, column in columns.items():
            measure, form = column.split()
            row[label] = format_interval(measured.get(measure), form)
        cells.append(row)
    frame = pd.DataFrame(cells)
    return frame.loc[:, (frame != NONE).any()]


def tradeoff(rows: Mapping[str, Measured]) -> dict[str, tuple[float, float, float]]:
    """Bits and both squared errors of each system, for :func:`submanifold.plots.frontier`."""
    points: dict[str, Any] = {
        name: tuple(value(row, measure) for measure in ("bits_per_dim", "encoder", "nearest"))
        for name, row in rows.items()
    }
    points = {name: point for name, point in points.items() if None not in point}
    for pca in [row["pca"]["value"] for row in rows.values() if "pca" in row][-1:]:
        points["PCA"] = (float("nan"), pca, pca)
    return points


def comparison(
    name: str,
    page: Mapping[str, Any],
    data: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
) -> Content:
    """Make the content of a comparison from the page's YAML file and results of `in_order`.

    Results of other publications follow the tables.
    """
    rows = pd.read_csv(Path(__file__).parent / "comparisons/published.csv", dtype=str).fillna(NONE)
    for caption, part in rows[rows["page"] == name].groupby("table", sort=False):
        part = part.drop(columns=["page", "table"]).reset_index(drop=True)
        tables = {**tables, f"Published: {caption}": part}
    return Content(dict(tables), dict(figures), data, [*page["notes"]])
