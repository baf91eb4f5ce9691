"""Kedro's settings of this project."""

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.runs.hooks import ExperimentHooks, TrackingHooks

HOOKS = (ExperimentHooks(), TrackingHooks())
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-mlflow", "kedro_mlflow")  # installed for an earlier version
CONFIG_LOADER_CLASS = ExperimentConfigLoader
CONFIG_LOADER_ARGS = LOADER_ARGS
