"""Kedro hooks: checks and pipelines, MLflow tracking, and failures of MLflow.

Every Kedro command imports this package, so torch is imported in the functions that use it.
kedro-mlflow imports MLflow in every command.
"""

from submanifold.runs.hooks.faults import FaultHooks
from submanifold.runs.hooks.pipelines import ExperimentHooks
from submanifold.runs.hooks.tracking import TrackingHooks

__all__ = ["ExperimentHooks", "FaultHooks", "TrackingHooks"]
