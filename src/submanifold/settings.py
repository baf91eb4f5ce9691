"""Kedro's settings of this project."""

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.runs.hooks import ExperimentHooks, FaultHooks, TrackingHooks

HOOKS = (ExperimentHooks(), TrackingHooks(), FaultHooks())
CONFIG_LOADER_CLASS = ExperimentConfigLoader
CONFIG_LOADER_ARGS = LOADER_ARGS
