"""Configuration: from parameters to one typed experiment, and the keys of its artifacts."""

from submanifold.config.cache_keys import artifact_keys
from submanifold.config.resolve import resolve
from submanifold.config.schema import EvaluationSettings, Experiment, LaunchSettings, flatten

__all__ = [
    "EvaluationSettings",
    "Experiment",
    "LaunchSettings",
    "artifact_keys",
    "flatten",
    "resolve",
]
