"""MLflow: where training curves go, which of its runs are the same, and what they have measured."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

from submanifold.training.trainer import Row

EVALUATED = "metrics.`test.parameters` > 0"
"""Finds the runs whose model was evaluated: whatever else of it has no value, it is counted."""


def log_to_mlflow() -> Callable[[str, int, Row], None] | None:
    """Make a callback that logs values by step as ``<prefix>.<name>``, without waiting."""
    if mlflow.active_run() is None:
        return None

    def log(prefix: str, step: int, values: Row) -> None:
        named = {f"{prefix}.{name}": value for name, value in values.items()}
        mlflow.log_metrics(named, step=step, synchronous=False)

    return log


def find_runs(where: str, experiment: str | None = None) -> list[Run]:
    """Find runs in MLflow's store, or in one of its experiments, the newest first."""
    return mlflow.search_runs(
        [experiment] if experiment else None,
        where,
        order_by=["attributes.start_time DESC"],
        output_format="list",
        search_all_experiments=experiment is None,
    )


def newest(runs: Sequence[Run]) -> list[Run]:
    """Keep the first of runs of equal settings, whatever version of the program measured them."""
    found: dict[tuple[str, ...], Run] = {}
    for run in runs:
        params = run.data.params
        measured = sorted(name for name in params if name.startswith("evaluation."))
        settings = (f"{name}={params[name]}" for name in measured)
        found.setdefault((params["keys.model"], *settings), run)
    return list(found.values())


def logged(run: Run, metric: str, column: str) -> dict[str, float]:
    """Find a metric of metrics.json in a run, NaN where it has none.

    Returns:
        Its value as ``<column>``, and its interval as ``<column>_low`` and ``<column>_high``.
    """
    names = {"": metric, "_low": f"{metric}.low", "_high": f"{metric}.high"}
    found = run.data.metrics
    return {f"{column}{end}": found.get(f"test.{name}", np.nan) for end, name in names.items()}


def metrics_of(run: Run) -> dict[str, Any]:
    """Read the metrics.json that a run has kept; empty where it is gone."""
    path = artifact(run.info.run_id, "metrics.json")
    return json.loads(path.read_text()) if path else {}


def artifact(run_id: str, name: str) -> Path | None:
    """Fetch a file that a run has kept, or None where there is none."""
    if name not in {each.path for each in mlflow.MlflowClient().list_artifacts(run_id)}:
        return None
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # it writes over Kedro's log
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))
