"""Kedro's settings of this project."""

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.runs.hooks import RunHooks

HOOKS = (RunHooks(),)
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-mlflow")  # RunHooks calls its hook
CONFIG_LOADER_CLASS = ExperimentConfigLoader
CONFIG_LOADER_ARGS = LOADER_ARGS
