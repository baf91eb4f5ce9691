"""Nodes of the sweep pipeline."""

from typing import Any

import mlflow
import pandas as pd
import plotly.graph_objects as go

from submanifold.errors import UserError
from submanifold.figures import sweep_figure
from submanifold.pipelines.tracking import identity

TAG = "submanifold.sweep"
METRICS = {"bpd": "test.bits_per_dim", "mse": "test.mse"}


def tag_run(key: str, sweep: str) -> None:
    """Mark the newest run of MLflow's with this key, and with figures, as a point of a sweep.

    Raises:
        UserError: There is none.
    """
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"params.`keys.run` = '{key}' AND metrics.`{METRICS['bpd']}` > 0",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    if not runs:
        raise UserError(
            f"{key} is finished, but MLflow's store at {mlflow.get_tracking_uri()} has no run of "
            "it. Delete its folder in data/07_model_output, and run the sweep again."
        )
    mlflow.MlflowClient().set_tag(runs[0].info.run_id, f"{TAG}.{sweep}", "true")


def collect_sweep(dataset: str, method: str, parameter: str | None) -> pd.DataFrame:
    """Collect the points of a sweep from MLflow's store, the newest run of equal settings.

    Returns:
        Columns ``value`` of the parameter, ``seed``, ``dim`` of the innermost manifold, ``bpd`` and
        ``mse`` with ``_low`` and ``_high``, and ``run``, MLflow's id; by rising value.

    Raises:
        UserError: There are none.
    """
    name = sweep_name(dataset, method, parameter)
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{TAG}.{name}` = 'true'",
        order_by=["attributes.start_time ASC"],
        output_format="list",
    )
    if not runs or parameter is None:
        raise UserError(
            f"MLflow's store at {mlflow.get_tracking_uri()} has no sweep of {parameter} for "
            f"{method} on {dataset}. Make one with: kedro sweep stage_1.delta 0.03 0.1 0.3 "
            f"--params=dataset={dataset},method={method}"
        )
    points = {identity(run): _point(run, parameter) for run in runs}
    return pd.DataFrame(points.values()).sort_values(["value", "seed"], ignore_index=True)


def draw_sweep(table: pd.DataFrame, parameter: str, baselines: dict[str, Any]) -> go.Figure:
    """Plot bits per dimension against squared error, with PCA's errors."""
    curve = baselines.get("pca_mse")
    return sweep_figure(table, parameter, curve and [curve[dim] for dim in table["dim"]])


def sweep_name(dataset: str, method: str, parameter: str | None) -> str:
    """Name a sweep, in tags and in files."""
    return f"{dataset}-{method}-{parameter}"


def _point(run: mlflow.entities.Run, parameter: str) -> dict[str, Any]:
    params, metrics = run.data.params, run.data.metrics
    dims = sorted(name for name in params if name.startswith("stage_") and name.endswith(".dim"))
    found: dict[str, Any] = {
        "value": _number(params[parameter]),
        "seed": int(params["seed"]),
        "dim": int(params[dims[-1]]),
    }
    for name, metric in METRICS.items():
        found[name] = metrics[metric]
        found |= {f"{name}_{end}": metrics[f"{metric}.{end}"] for end in ("low", "high")}
    return found | {"run": run.info.run_id}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
