"""What the comparison pages share: recorded results, means over seeds, tables and notes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

import numpy as np
import pandas as pd
import yaml

from submanifold.evaluation.metrics import NONE
from submanifold.studies.comparisons.measures import Measured
from submanifold.studies.seeds import INTERVAL, over_seeds, written

Columns = Mapping[str, Callable[[Measured], Any]]
"""Columns of a table: how the text of a cell is made of the measures of a row."""


def with_record(
    rows: Sequence[Mapping[str, Any]],
    record: pd.DataFrame | None,
    systems: Sequence[str],
    keys: Sequence[str],
) -> pd.DataFrame:
    """Merge rows measured on this machine with recorded ones, which fill in for missing runs.

    Args:
        rows: Rows with ``data``, ``row`` (the system) and the keys.
        record: Recorded rows.
        systems: Names of the systems in order; recorded rows of others are left out.
        keys: Columns that, with ``data`` and ``row``, identify a row.

    Returns:
        All rows, sorted by system and keys; ``attrs["recorded"]`` is the number of recorded rows.
    """
    parts = [pd.DataFrame(rows)] if rows else []
    if record is not None:
        parts.append(record[record["row"].isin(systems)])
    data = pd.concat(parts).drop_duplicates(["data", "row", *keys], ignore_index=True)
    order = np.lexsort((*(data[key] for key in keys), data["row"].map(list(systems).index)))
    data = data.iloc[order].reset_index(drop=True)
    data.attrs["recorded"] = len(data) - len(rows)
    return data


def summarize(data: pd.DataFrame, by: Sequence[str] = ("row",)) -> dict[Any, Measured]:
    """Average the ``value``, ``low`` and ``high`` of each ``measure`` over seeds.

    Returns:
        The measures of each group. ``seconds`` are the smallest, since other work on the machine
        only adds to them; ``seeds`` is the number of seeds.
    """
    found: defaultdict[Any, Measured] = defaultdict(dict)
    clean = data.astype(object).where(data.notna(), None)
    for key, rows in clean.groupby([*by, "measure"], sort=False):
        *group, measure = cast(tuple[str, ...], key)
        summary = found[group[0] if len(group) == 1 else tuple(group)]
        seeds = rows[list(INTERVAL)].to_dict("records")
        if measure == "seconds":
            summary[measure] = {"value": rows["value"].astype(float).min()}
        else:
            summary[measure] = over_seeds(seeds)
        summary["seeds"] = {"value": max(len(seeds), summary.get("seeds", {"value": 0})["value"])}
    return dict(found)


def value(measured: Measured, measure: str) -> float | None:
    """Return the value of a measure, None if it is missing."""
    return measured.get(measure, {}).get("value")


def cell(measure: str, form: str) -> Callable[[Measured], str]:
    """Return the function that formats a measure and its interval."""
    return lambda measured: written(measured.get(measure), form)


def table(rows: Mapping[Any, Measured], names: Sequence[str], columns: Columns) -> pd.DataFrame:
    """Format a table.

    Args:
        rows: Measures by system, or by a tuple that starts with the system.
        names: Names of the first columns, which contain the keys of the rows.
        columns: The other columns; those without any value are left out.
    """
    keys = [key if isinstance(key, tuple) else (key,) for key in rows]
    cells = [
        dict(zip(names, key, strict=True)) | {name: text(row) for name, text in columns.items()}
        for key, row in zip(keys, rows.values(), strict=True)
    ]
    frame = pd.DataFrame(cells)
    return frame.loc[:, (frame != NONE).any()]


def tradeoff(rows: Mapping[str, Measured], bits: str) -> dict[str, tuple[float, float, float]]:
    """Bits and both squared errors of each system, for :func:`submanifold.plots.frontier`."""
    points: dict[str, Any] = {}
    for name, row in rows.items():
        point = tuple(value(row, measure) for measure in (bits, "encoder", "nearest"))
        if None not in point:
            points[name] = point
    for pca in [row["pca"]["value"] for row in rows.values() if "pca" in row][-1:]:
        points["PCA"] = (float("nan"), pca, pca)
    return points


def notes_on_rows(data: pd.DataFrame, wanted: Iterable[tuple[str, str]], record: str) -> list[str]:
    """Return notes on the systems that are missing on a data set, and on recorded rows."""
    found = set(zip(data["data"], data["row"], strict=True))
    missing: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for name, system in wanted:
        if (name, system) not in found:
            missing[name][system] = None
    notes = [f"Not run on {name}: {'; '.join(systems)}." for name, systems in missing.items()]
    if count := data.attrs["recorded"]:
        notes.append(f"{count} rows of the data were measured before, and are read from {record}.")
    return notes


def read_page(name: str) -> dict[str, Any]:
    """Read ``<name>.yml``: systems, settings and notes of a page."""
    return yaml.safe_load((files(__package__) / f"{name}.yml").read_text(encoding="utf-8"))


def published(page: str) -> dict[str, pd.DataFrame]:
    """Read the results of other publications for a page: tables by caption."""
    with (files(__package__) / "published.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype=str).fillna(NONE)
    of_page = rows[rows["page"] == page].drop(columns="page")
    return {
        f"Published: {name}": rows.drop(columns="table").reset_index(drop=True)
        for name, rows in of_page.groupby("table", sort=False)
    }
