"""Nodes of the comparison pipeline."""

import re
from collections.abc import Hashable
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run

from submanifold.common.errors import UserError
from submanifold.evaluation.metrics import COMPARED, NONE, Metric, is_missing
from submanifold.plots.pages import render
from submanifold.runs import tracking

SAMPLES = 32
PICTURE_SIZE = 1000
NOT_COMPARED = re.compile(r"dataset|method|seed|stage_\d+\.dim|keys\..*|sweep")
"""Parameters with their own column, or without effect on the model."""

Row = dict[Hashable, Any]


def collect_runs(dataset: str) -> pd.DataFrame:
    """Collect the finished runs of a data set, the newest of each experiment.

    Returns:
        One row for each run. Columns without any value are left out.

    Raises:
        UserError: There are no runs, or MLflow is disabled.
    """
    active = mlflow.active_run()
    if active is None:
        raise UserError(
            "tracking.disable_tracking in conf/<env>/mlflow.yml: expected MLflow to be enabled, "
            "since compare reads its runs. Change it there."
        )
    experiment = active.info.experiment_id
    found = tracking.find_runs(
        f"attributes.status = 'FINISHED' and {tracking.EVALUATED}", experiment
    )
    runs = tracking.newest([run for run in found if run.data.params["dataset"] == dataset])
    if not runs:
        known = ", ".join(sorted({run.data.params["dataset"] for run in found}))
        raise UserError(
            f"dataset: expected one with finished runs ({known or 'there are none'}), got "
            f"{dataset}. MLflow experiment: {mlflow.get_experiment(experiment).name} of "
            f"{tracking.tracking_uri()}. Make a run with: kedro run --pipeline=hierarchical "
            f"--params=dataset={dataset}"
        )
    table = pd.DataFrame(map(_row, runs))
    settings = pd.DataFrame([run.data.params for run in runs])
    table["differs"] = differing_settings(settings.assign(features=table["features"]))
    table = table.dropna(axis="columns", how="all")
    return table.sort_values(["method", "dims", "seed", "started"])


def write_comparison(table: pd.DataFrame, dataset: str) -> str:
    """Write the HTML page: a sortable table, and the samples of the runs by seed."""
    rows = table.fillna({"differs": ""}).to_dict("records")
    pictures = {row["run_id"]: _picture(row["run_id"]) for row in rows}
    metrics = [metric for metric in COMPARED.values() if metric.name in table]
    return render(
        "comparison.html",
        dataset=dataset,
        synthetic="sample_distance" in table,
        metrics=metrics,
        rows=[{**row, "cells": [_cell(row, metric) for metric in metrics]} for row in rows],
        seeds=sorted(set(table["seed"])),
        features=sorted(set(table["features"].dropna())) if "features" in table else [],
        pictures={run: png for run, png in pictures.items() if png is not None},
    )


def differing_settings(settings: pd.DataFrame) -> list[str]:
    """List the settings of each run that differ between runs; missing ones are defaults.

    Settings of a stage or phase are compared only between runs that have it.
    """
    values = settings.map(_normalized, na_action="ignore")
    varying = []
    for name in sorted(map(str, values)):
        group = name.split(".")[0]
        peers = values
        if group.startswith(("stage_", "phase_")):
            peers = values[values.filter(regex=rf"^{group}(\.|$)").notna().any(axis="columns")]
        if not NOT_COMPARED.fullmatch(name) and peers[name].nunique(dropna=False) > 1:
            varying.append(name)
    return [
        "; ".join(f"{name}={value}" for name, value in row.dropna().items())
        for _, row in values[varying].iterrows()
    ]


def _row(run: Run) -> Row:
    params, metrics = run.data.params, tracking.metrics_of(run)
    row: Row = {
        "method": params["method"],
        "dims": " → ".join(map(str, metrics.get("dims", [NONE]))),
        "seed": int(params["seed"]),
    }
    for metric in COMPARED.values():
        row.update(tracking.logged(run, metric.name, metric.name))
    return {
        **row,
        "features": metrics.get("features"),
        "started": pd.Timestamp(run.info.start_time, unit="ms").isoformat(" ", "seconds"),
        "key": params["keys.run"],
        "run_id": run.info.run_id,
    }


def _normalized(text: str) -> str:
    """Write equal numbers, such as 300, 300.0 and 3e2, in one way."""
    try:
        return repr(float(text)).removesuffix(".0")
    except ValueError:
        return text


def _cell(row: Row, metric: Metric) -> dict[str, Any]:
    """Text of a metric with its interval, and the value to sort by."""
    value, low, high = (row.get(f"{metric.name}{end}") for end in ("", "_low", "_high"))
    text = metric.write({"value": value, "low": low, "high": high})
    return {"value": "" if is_missing(value) else value, "text": text}


def _picture(run_id: str) -> bytes | None:
    """PNG of the first samples of a run, or of its manifold if the data are points."""
    from PIL import Image

    from submanifold.plots.images import as_png, sample_sheet

    if path := tracking.artifact(run_id, "samples.npy"):
        samples = np.load(path, mmap_mode="r")
        if samples.ndim == 4:
            return as_png(sample_sheet(samples[:SAMPLES]))
    if path := tracking.artifact(run_id, "manifold.png"):
        picture = Image.open(path)
        picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        return as_png(picture)
    return None
