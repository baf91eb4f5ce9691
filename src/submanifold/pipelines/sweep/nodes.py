"""Nodes of the sweep pipeline."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from submanifold.common.errors import UserError
from submanifold.evaluation.metrics import COMPARED
from submanifold.runs import tracking

TAG = "submanifold.sweep"


def sweep_name(dataset: str, method: str, parameter: str | None) -> str:
    """Name of a sweep in tags and file names."""
    return f"{dataset}-{method}-{parameter}"


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


def collect_sweep(dataset: str, method: str, parameter: str | None) -> pd.DataFrame:
    """Collect the runs of a sweep, the newest of each experiment.

    Returns:
        Columns ``value`` (of the parameter), ``seed``, ``dim`` (of the innermost manifold),
        ``run``, the MLflow run ID, and ``bpd`` and ``mse`` with ``_low`` and ``_high``, sorted by
        value. Missing measurements are NaN.

    Raises:
        UserError: There are no runs.
    """
    name = sweep_name(dataset, method, parameter)
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
