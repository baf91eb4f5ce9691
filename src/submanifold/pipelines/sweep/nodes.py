"""Nodes of the sweep pipeline."""

import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from submanifold.common.errors import UserError
from submanifold.evaluation.metrics import COMPARED, is_missing
from submanifold.pipelines.conclusions import best_sentence, interval, joined
from submanifold.pipelines.usage import model_command, run_of_model, training_command
from submanifold.plots.pages import render
from submanifold.runs import tracking

TAG = "submanifold.sweep"


def sweep_name(data_key: str, method: str, parameter: str | None) -> str:
    """Name of a sweep in tags and file names."""
    return f"{data_key}-{method}-{parameter}"


def tag_run(key: str, sweep: str) -> None:
    """Tag the newest evaluated MLflow run with a cache key as part of a sweep.

    Raises:
        UserError: There is no such run.
    """
    runs = tracking.find_runs(f"params.`keys.run` = '{key}' AND {tracking.EVALUATED}")
    if runs.empty:
        raise UserError(
            f"MLflow store {tracking.tracking_uri()}: expected a run of {key}, which is finished, "
            "got none. Delete its folder in data/07_model_output and repeat the sweep."
        )
    mlflow.MlflowClient().set_tag(runs["run_id"].iloc[0], f"{TAG}.{sweep}", "true")


def collect_sweep(data_key: str, dataset: str, method: str, parameter: str | None) -> pd.DataFrame:
    """Collect the runs of a sweep, the newest of each experiment.

    Returns:
        Columns ``value`` (of the parameter), ``seed``, ``dim`` (of the innermost manifold),
        ``run``, the MLflow run ID, ``name`` and ``key`` of the run, ``model``, the key of its
        model, the ``command`` without the parameter, whether the data are ``points``, and ``bpd``
        and ``mse`` with ``_low`` and ``_high``, sorted by value. Missing measurements are NaN.

    Raises:
        UserError: There are no runs.
    """
    name = sweep_name(data_key, method, parameter)
    runs = tracking.newest(tracking.find_runs(f"tags.`{TAG}.{name}` = 'true'"))
    if runs.empty:
        raise UserError(
            f"MLflow store {tracking.tracking_uri()}: expected a sweep of {parameter} for {method} "
            f"on {dataset}, got none. Make one with: kedro sweep stage_1.dim 100 300 1000 "
            f"--params=dataset={dataset},method={method}"
        )
    about = pd.DataFrame({
        "value": runs[f"params.{parameter}"],
        "seed": runs["params.seed"].astype(int),
        "dim": [tracking.metrics_of(each).get("dims", [np.nan])[-1] for each in runs["run_id"]],
        "run": runs["run_id"],
        "name": runs["tags.mlflow.runName"],
        "key": runs["params.keys.run"],
        "model": runs["params.keys.model"],
        "command": [training_command(row, str(parameter)) for row in runs.to_dict("records")],
        "points": "metrics.test.sample_distance" in runs,
    })  # fmt: skip
    try:
        about["value"] = about["value"].astype(float)
    except ValueError:  # a CSV file cannot contain None
        about["value"] = about["value"].replace("None", "none")
    metrics = tracking.measured(runs, {"bpd": COMPARED["bpd"].name, "mse": COMPARED["mse"].name})
    table = pd.concat([about, metrics], axis="columns")
    return table.sort_values(["value", "seed"], ignore_index=True)


def draw_sweep(table: pd.DataFrame, parameter: str, baselines: dict[str, Any]) -> go.Figure:
    """Plot bits per dimension against squared error, with the errors of PCA."""
    from submanifold.plots.trials import sweep_figure

    curve = baselines["pca_mse"]  # may lack large dimensions
    pca = [curve[int(dim)] if dim < len(curve) else np.nan for dim in table["dim"]]
    return sweep_figure(table, parameter, pca)


def write_sweep(
    table: pd.DataFrame,
    figure: go.Figure,
    parameter: str,
    dataset: str,
    method: str,
    reporting: Path,
) -> str:
    """Write the HTML page: a conclusion, the plot, and the table of runs."""
    from submanifold.plots.trials import as_html

    def label(row: pd.Series) -> str:
        return f"{parameter} = {written(row['value'])}"

    metrics = {column: COMPARED[column] for column in ("bpd", "mse")}
    best = [best_sentence(table, column, metric, label) for column, metric in metrics.items()]
    rows = [
        {
            **row,
            "value": written(row["value"]),
            "cells": [metric.write(interval(row, column)) for column, metric in metrics.items()],
            "report": (reporting / row["key"] / "report.html").is_file(),
        }
        for _, row in table.iterrows()
    ]
    chosen = table.iloc[table["mse"].fillna(np.inf).argmin()]
    usage = []
    if not chosen["points"]:
        model = run_of_model(chosen["model"], reporting.parent.parent)
        command = model_command(model, "score", "PICTURES")
        usage.append((command, "applies the run with the lowest error"))
    if not is_missing(chosen["command"]):
        rest = re.sub(r"^.*?(?= --env=| --params=|$)", "", chosen["command"])
        again = f"submanifold sweep {parameter} VALUE VALUE{rest}"
        usage.append((again, "adds values to this page"))
    return render(
        "sweep.html",
        parameter=parameter,
        dataset=dataset,
        method=method,
        conclusion=joined(best),
        rows=rows,
        metrics=[*metrics.values()],
        has_seeds=table["seed"].nunique() > 1,
        plot=as_html(figure),
        usage=usage,
    )


def written(value: object) -> str:
    """Write the value of a parameter.

    Example:
        >>> written(20.0), written("none")
        ('20', 'none')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)
