"""Nodes of the sweep pipeline."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from mlflow.entities import Run

from submanifold.common.errors import UserError
from submanifold.evaluation.metrics import COMPARED
from submanifold.runs.tracking import (
    EVALUATED,
    find_runs,
    logged,
    metrics_of,
    newest,
    tracking_uri,
)

TAG = "submanifold.sweep"


def sweep_name(dataset: str, method: str, parameter: str | None) -> str:
    """Name of a sweep in tags and file names."""
    return f"{dataset}-{method}-{parameter}"


def tag_run(key: str, sweep: str) -> None:
    """Tag the newest evaluated MLflow run with a cache key as part of a sweep.

    Raises:
        UserError: There is no such run.
    """
    runs = find_runs(f"params.`keys.run` = '{key}' AND {EVALUATED}")
    if not runs:
        raise UserError(
            f"MLflow store {tracking_uri()}: expected a run of {key}, which is finished, got "
            "none. Delete its folder in data/07_model_output and repeat the sweep."
        )
    mlflow.MlflowClient().set_tag(runs[0].info.run_id, f"{TAG}.{sweep}", "true")


def collect_sweep(dataset: str, method: str, parameter: str | None) -> pd.DataFrame:
    """Collect the runs of a sweep, the newest of each experiment.

    Returns:
        Columns ``value`` (of the parameter), ``seed``, ``dim`` (of the innermost manifold),
        ``bpd`` and ``mse`` with ``_low`` and ``_high``, and ``run``, the MLflow run ID, sorted by
        value. Missing measurements are NaN.

    Raises:
        UserError: There are no runs.
    """
    runs = find_runs(f"tags.`{TAG}.{sweep_name(dataset, method, parameter)}` = 'true'")
    if not runs or parameter is None:
        raise UserError(
            f"MLflow store {tracking_uri()}: expected a sweep of {parameter} for {method} on "
            f"{dataset}, got none. Make one with: kedro sweep stage_1.dim 100 300 1000 "
            f"--params=dataset={dataset},method={method}"
        )
    table = pd.DataFrame([_point(run, parameter) for run in newest(runs)])
    try:
        table["value"] = table["value"].astype(float)
    except ValueError:  # a CSV file cannot contain None
        table["value"] = table["value"].replace("None", "none")
    return table.sort_values(["value", "seed"], ignore_index=True)


def draw_sweep(table: pd.DataFrame, parameter: str, baselines: dict[str, Any]) -> go.Figure:
    """Plot bits per dimension against squared error, with the errors of PCA."""
    from submanifold.plots.trials import sweep_figure

    curve = baselines["pca_mse"]  # may lack large dimensions
    pca = [curve[int(dim)] if dim < len(curve) else np.nan for dim in table["dim"]]
    return sweep_figure(table, parameter, pca)


def _point(run: Run, parameter: str) -> dict[str, Any]:
    params = run.data.params
    return {
        "value": params[parameter],
        "seed": int(params["seed"]),
        "dim": metrics_of(run).get("dims", [np.nan])[-1],
        **logged(run, COMPARED["bpd"].name, "bpd"),
        **logged(run, COMPARED["mse"].name, "mse"),
        "run": run.info.run_id,
    }
