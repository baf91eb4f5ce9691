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

SHOWN = 32
LARGEST_PICTURE = 1000
NO_SETTING = re.compile(r"dataset|method|seed|stage_\d+\.dim|keys\..*|sweep")
"""Parameters that have a column of their own, or do not say what the model is."""

Row = dict[Hashable, Any]


def collect_runs(dataset: str) -> pd.DataFrame:
    """Find the finished training runs of a dataset in MLflow, the newest of each experiment.

    Returns:
        A row for each run, a UserError for none; columns of what no run has are left out.
    """
    active = mlflow.active_run()
    if active is None:
        raise UserError(
            "The comparison looks for runs in the MLflow experiment of its own run, but MLflow is "
            "turned off. Change tracking.disable_tracking in conf/<env>/mlflow.yml."
        )
    experiment = active.info.experiment_id
    found = tracking.find_runs(
        f"attributes.status = 'FINISHED' and {tracking.EVALUATED}", experiment
    )
    runs = tracking.newest([run for run in found if run.data.params["dataset"] == dataset])
    if not runs:
        others = sorted({run.data.params["dataset"] for run in found})
        there = f" There are runs of: {', '.join(others)}." if others else ""
        raise UserError(
            f"dataset={dataset} has no finished training run in the MLflow experiment "
            f"{mlflow.get_experiment(experiment).name} of {tracking.tracking_uri()}.{there} "
            "Make one with kedro run --pipeline=hierarchical "
            f"--params=dataset={dataset}, or give another dataset."
        )
    table = pd.DataFrame(map(_row, runs))
    settings = pd.DataFrame([run.data.params for run in runs])
    table["differs"] = _differences(settings.assign(features=table["features"]))
    table = table.dropna(axis="columns", how="all")
    return table.sort_values(["method", "dims", "seed", "started"])


def write_comparison(table: pd.DataFrame, dataset: str) -> str:
    """Put the runs in one sortable table, with the samples of each seed side by side."""
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


def _differences(settings: pd.DataFrame) -> list[str]:
    """Name the settings of each run that another run has with another value.

    One that is not there has its default value. Those of a stage that the other run does not have
    are no difference: the dimensions say it.
    """
    values = settings.map(_as_number, na_action="ignore")
    varying = []
    for name in sorted(map(str, values)):
        group = name.split(".")[0]
        peers = values[values.filter(regex=rf"^{group}(\.|$)").notna().any(axis="columns")]
        among = peers if group.startswith(("stage_", "phase_")) else values
        if not NO_SETTING.fullmatch(name) and among[name].nunique(dropna=False) > 1:
            varying.append(name)
    return [
        "; ".join(f"{name}={value}" for name, value in row.dropna().items())
        for _, row in values[varying].iterrows()
    ]


def _as_number(text: str) -> str:
    """Write 300, 300.0 and 3e2, which are equal settings, in one way."""
    try:
        return repr(float(text)).removesuffix(".0")
    except ValueError:
        return text


def _cell(row: Row, metric: Metric) -> dict[str, Any]:
    """Write a row's number with its interval, and the value to sort by."""
    value, low, high = (row.get(f"{metric.name}{end}") for end in ("", "_low", "_high"))
    text = metric.write({"value": value, "low": low, "high": high})
    return {"value": "" if is_missing(value) else value, "text": text}


def _picture(run_id: str) -> bytes | None:
    """Show the first samples of a run, or the learned manifold where samples are no images."""
    from PIL import Image

    from submanifold.plots.images import as_png, sample_sheet

    if path := tracking.artifact(run_id, "samples.npy"):
        samples = np.load(path, mmap_mode="r")
        if samples.ndim == 4:
            return as_png(sample_sheet(samples[:SHOWN]))
    if path := tracking.artifact(run_id, "manifold.png"):
        picture = Image.open(path)
        picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
        return as_png(picture)
    return None
