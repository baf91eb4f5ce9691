"""Sections of the comparison page: the conclusion, the order of runs, points of the figure."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from submanifold.data.settings import TABLES
from submanifold.evaluation.metrics import METRICS, Metric, is_missing
from submanifold.pipelines.conclusions import best_sentence, interval, joined
from submanifold.pipelines.usage import model_command, repeated, run_of_model

HEADLINES = ("bits_per_dim", "mse")
OF_POINTS = ("divergence", "projection_distance")
"""Metrics of the conclusion, for images and for points; the first one sorts the runs."""
INPUTS = {"images": "PICTURES", "rows": "TABLE"}
MAX_POINTS = 20
FLOW = re.compile(r"stage_\d+\.flow\.type=([^;]*)")


def headlines(table: pd.DataFrame) -> list[Metric]:
    """Return the metrics of the conclusion."""
    names = OF_POINTS if "divergence" in table else HEADLINES
    return [METRICS[name] for name in names if name in table]


def events(table: pd.DataFrame) -> str:
    """Return what the runs describe: ``images``, ``points`` or ``rows``."""
    if "sample_distance" in table:
        return "points"
    return "rows" if table.get("source", pd.Series()).isin(TABLES).any() else "images"


def sort_runs(table: pd.DataFrame, by: Sequence[Metric]) -> pd.DataFrame:
    """Sort runs by the first metric, the best one first, and those without it last."""
    names = [metric.name for metric in by[:1]]
    return table.sort_values([*names, "method", "dims", "seed"], ignore_index=True)


def cell(row: pd.Series, metric: Metric, best: float | None) -> dict[str, Any]:
    """Return the text and the sort key of a metric of a run, and whether it has the best value."""
    measured = interval(row, metric.name)
    value = measured["value"]
    text = metric.write(measured)
    return {"value": "" if is_missing(value) else value, "text": text, "is_best": value == best}


def best_values(table: pd.DataFrame, metrics: Sequence[Metric]) -> dict[str, float]:
    """Return the best value by metric, if there are several runs with different ones."""
    found = {}
    for metric in metrics:
        values = table[metric.name].dropna()
        if metric.better and values.nunique() > 1:
            found[metric.name] = float(values.min() if metric.better == "lower" else values.max())
    return found


def conclusion(table: pd.DataFrame, metrics: Sequence[Metric]) -> list[str]:
    """Return the best runs, those that their intervals do not separate, and the effect of seeds."""
    if len(table) == 1:
        return ["There is one finished run. Make another one to compare it with."]
    found = joined(best_sentence(table, metric.name, metric, label) for metric in metrics)
    spread = [text for metric in metrics if (text := _seed_spread(table, metric))]
    if spread:
        found.append(f"Runs that differ only in the seed differ by up to {' and '.join(spread)}.")
    return found


def label(row: pd.Series) -> str:
    """Return a short name of a run."""
    name = row.get("name")
    return str(row["run_id"])[:8] if is_missing(name) else str(name)


def points(table: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Return bits and both squared errors of the best runs, for the figure."""
    found = {}
    for number, (_, row) in enumerate(table.head(MAX_POINTS).iterrows(), start=1):
        names = ("bits_per_dim", "encoder_mse", "nearest_mse")
        bits, encoder, nearest = (float(row.get(name, math.nan)) for name in names)
        if not math.isnan(bits) and not math.isnan(encoder):
            about = [row["method"], *FLOW.findall(str(row.get("differs")))]
            found[f"{number}. {label(row)} ({', '.join(about)})"] = (bits, encoder, nearest)
    return found


def usage(
    table: pd.DataFrame, dataset: str, paths: Sequence[Path], project: Path
) -> list[tuple[str, str]]:
    """Return commands for the next steps, with explanations."""
    first, found = table.iloc[0], []
    if (kind := events(table)) != "points":
        best, inputs = run_of_model(first["model"], project), INPUTS[kind]
        found.append((model_command(best, "score", inputs), "applies the table's first run"))
    if not is_missing(first.get("command")):
        again = repeated({"command": first["command"]}, seed=str(int(table["seed"].max()) + 1))
        found.append((again, "the settings of the first run with another seed"))
    params = f"dataset={dataset}"
    if len(paths) == 1:
        params += f",data.path={paths[0]}"
    page = f"submanifold run --pipeline=compare --params={shlex.quote(params)}"
    return [*found, (page, "this page with new runs")]


def _seed_spread(table: pd.DataFrame, metric: Metric) -> str:
    """Return the largest difference of runs that differ only in the seed, as text."""
    groups = table.fillna({"differs": ""}).groupby(["method", "dims", "differs"])[metric.name]
    ranges = (groups.max() - groups.min())[groups.count() > 1]
    return "" if ranges.empty else f"{ranges.max():.2g} ({metric.phrase})"
