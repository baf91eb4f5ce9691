"""Kedro's settings of this project."""

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.runs.file_hooks import FileHooks
from submanifold.runs.hooks import ExperimentHooks, TrackingHooks

HOOKS = (ExperimentHooks(), FileHooks(), TrackingHooks())
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-mlflow")  # TrackingHooks is its subclass
CONFIG_LOADER_CLASS = ExperimentConfigLoader
CONFIG_LOADER_ARGS = LOADER_ARGS
