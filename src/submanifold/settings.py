"""Kedro's settings of this project."""

from typing import Any

from submanifold.config.loader import ExperimentConfigLoader
from submanifold.runs.hooks import ExperimentHooks, FaultHooks, TrackingHooks

HOOKS = (ExperimentHooks(), TrackingHooks(), FaultHooks())
CONFIG_LOADER_CLASS = ExperimentConfigLoader
CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "catalog": "soft"},
    "config_patterns": {"mlflow": ["mlflow*"]},
}
