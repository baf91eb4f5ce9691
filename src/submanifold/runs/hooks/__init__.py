"""Kedro hooks: checks and pipelines, and the MLflow run of a pipeline.

Every Kedro command imports this package, so torch and MLflow are imported in the functions that use
them.
"""

from submanifold.runs.hooks.pipelines import ExperimentHooks
from submanifold.runs.hooks.tracking import TrackingHooks

__all__ = ["ExperimentHooks", "TrackingHooks"]
