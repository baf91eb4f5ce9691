"""Nodes of the sweep pipeline."""

from collections.abc import Sequence
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


def tag_run(key: str, sweep: str) -> None:
    """Mark the newest evaluated run with this key as a point of a sweep; a UserError for none."""
    runs = find_runs(f"params.`keys.run` = '{key}' AND {EVALUATED}")
    if not runs:
        raise UserError(
            f"{key} is finished, but MLflow's store at {tracking_uri()} has no run of "
            "it. Delete its folder in data/07_model_output, and run the sweep again."
        )
    mlflow.MlflowClient().set_tag(runs[0].info.run_id, f"{TAG}.{sweep}", "true")


def collect_sweep(dataset: str, method: str, parameter: str | None) -> pd.DataFrame:
    """Collect the points of a sweep from MLflow's store, the newest run of equal settings.

    Returns:
        Columns ``value`` of the parameter, ``seed``, ``dim`` of the innermost manifold, ``bpd`` and
        ``mse`` with ``_low`` and ``_high``, and ``run``, MLflow's id; by rising value. What a run
        has not measured is NaN. A UserError for no run at all.
    """
    runs = find_runs(f"tags.`{TAG}.{sweep_name(dataset, method, parameter)}` = 'true'")
    if not runs or parameter is None:
        raise UserError(
            f"MLflow's store at {tracking_uri()} has no sweep of {parameter} for "
            f"{method} on {dataset}. Make one with: kedro sweep stage_1.dim 100 300 1000 "
            f"--params=dataset={dataset},method={method}"
        )
    table = pd.DataFrame([_point(run, parameter) for run in newest(runs)])
    table["value"] = _numbers(table["value"].to_list())
    return table.sort_values(["value", "seed"], ignore_index=True)


def draw_sweep(table: pd.DataFrame, parameter: str, baselines: dict[str, Any]) -> go.Figure:
    """Plot bits per dimension against squared error, with PCA's errors."""
    from submanifold.plots.trials import sweep_figure

    curve = baselines["pca_mse"]  # of the leading axes alone where there are very many
    pca = [curve[int(dim)] if dim < len(curve) else np.nan for dim in table["dim"]]
    return sweep_figure(table, parameter, pca)


def sweep_name(dataset: str, method: str, parameter: str | None) -> str:
    """Name a sweep, in tags and in files."""
    return f"{dataset}-{method}-{parameter}"


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


def _numbers(texts: Sequence[str]) -> Sequence[float | str]:
    """Read values as numbers, or where one is none leave all as text, which sort together."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        # a file of comma-separated values would be read back without a None
        return ["none" if text == "None" else text for text in texts]
