"""What the comparison pages share: recorded results, means over seeds, tables and notes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

import numpy as np
import pandas as pd

from submanifold.evaluation.metrics import NONE, format_interval
from submanifold.studies.comparisons.measures import Measured
from submanifold.studies.seeds import INTERVAL, over_seeds

KEYS = ("data", "row", "dim", "seed", "measure")
"""Columns that identify a row of results; ``row`` is the system, and ``dim`` is optional."""


def as_rows(measured: Measured, **keys: Any) -> list[dict[str, Any]]:
    """Write measures as rows of results, with ``value``, ``low``, ``high`` and the count ``n``."""
    return [
        {**keys, "measure": name, **{k: each[k] for k in (*INTERVAL, "n") if k in each}}
        for name, each in measured.items()
    ]


def with_record(
    rows: Sequence[Mapping[str, Any]], record: pd.DataFrame | None, systems: Sequence[str]
) -> pd.DataFrame:
    """Merge rows measured on this machine with recorded ones, which fill in for missing runs.

    Args:
        rows: Rows of :func:`as_rows`.
        record: Recorded rows.
        systems: Names of the systems in order; recorded rows of others are left out.

    Returns:
        All rows, sorted by system and keys; ``attrs["recorded"]`` is the number of recorded rows.
    """
    parts = [pd.DataFrame(rows)] if rows else []
    if record is not None:
        parts.append(record[record["row"].isin(systems)])
    data = pd.concat(parts)
    _, row, *keys = names = [name for name in KEYS if name in data]
    data = data.drop_duplicates(names, ignore_index=True)
    rank = data[row].map(list(systems).index)
    data = data.iloc[np.lexsort((*(data[key] for key in reversed(keys)), rank))]
    data = data.reset_index(drop=True)
    data.attrs["recorded"] = len(data) - len(rows)
    return data


def summarize(data: pd.DataFrame, names: Iterable[str]) -> dict[str, dict[Any, Measured]]:
    """Average measures over seeds, by data set and system.

    Args:
        data: Results.
        names: Names of data sets in order; those without results are left out.

    Returns:
        The measures of each system, or of each system and dimension. ``seconds`` are the smallest,
        since other work on the machine only adds to them; ``seeds`` is the number of seeds.
    """
    found: dict[str, defaultdict[Any, Measured]] = {
        name: defaultdict(dict) for name in names if name in set(data["data"])
    }
    clean = data.astype(object).where(data.notna(), None)
    keys = [name for name in KEYS if name in data and name != "seed"]
    for key, rows in clean.groupby(keys, sort=False):
        name, *system, measure = cast(tuple[str, ...], key)
        summary = found[name][system[0] if len(system) == 1 else tuple(system)]
        if measure == "seconds":
            summary[measure] = {"value": rows["value"].min()}
        else:
            summary[measure] = over_seeds(rows[list(INTERVAL)].to_dict("records"))
        summary["seeds"] = {"value": max(len(rows), value(summary, "seeds") or 0)}
    return {name: dict(systems) for name, systems in found.items()}


def value(measured: Measured, measure: str) -> Any:
    """Return the value of a measure, None if it is missing."""
    return measured.get(measure, {}).get("value")


def table(
    rows: Mapping[Any, Measured], names: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Format a table.

    Args:
        rows: Measures by system, or by a tuple that starts with the system.
        names: Names of the first columns, which contain the keys of the rows.
        columns: Measure and format of the other columns, such as ``"bits_per_dim .3f"``; columns
            without any value are left out.
    """
    cells = []
    for key, measured in rows.items():
        row = dict(zip(names, key if isinstance(key, tuple) else (key,), strict=True))
        for label, column in columns.items():
            measure, form = column.split()
            row[label] = format_interval(measured.get(measure), form)
        cells.append(row)
    frame = pd.DataFrame(cells)
    return frame.loc[:, (frame != NONE).any()]


def tradeoff(rows: Mapping[str, Measured]) -> dict[str, tuple[float, float, float]]:
    """Bits and both squared errors of each system, for :func:`submanifold.plots.frontier`."""
    points: dict[str, Any] = {}
    for name, row in rows.items():
        point = tuple(value(row, measure) for measure in ("bits_per_dim", "encoder", "nearest"))
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
        notes.append(f"{count:,} results were measured earlier and are read from {record}.")
    return notes


def about_record(page: Mapping[str, Any], data: pd.DataFrame) -> dict[str, Any]:
    """Return the conclusions and the provenance of a page, if its recorded results are used.

    Args:
        page: The page's YAML file, with the entry ``recorded``.
        data: Results of :func:`with_record`.

    Returns:
        The arguments ``conclusions``, ``measured`` and ``notes`` of :class:`.Content`.
    """
    if not data.attrs["recorded"]:
        return {"notes": [*page["notes"]]}
    recorded = page["recorded"]
    return {
        "conclusions": recorded["conclusions"],
        "measured": recorded["measured"],
        "notes": [*page["notes"], *recorded["notes"]],
    }


def published(page: str) -> dict[str, pd.DataFrame]:
    """Read the results of other publications for a page: tables by caption."""
    with (files(__package__) / "published.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype=str).fillna(NONE)
    of_page = rows[rows["page"] == page].drop(columns="page")
    return {
        f"Published: {name}": rows.drop(columns="table").reset_index(drop=True)
        for name, rows in of_page.groupby("table", sort=False)
    }
