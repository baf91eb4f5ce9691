"""From parameters to one typed experiment, the keys of its artifacts, and what it will cost."""

from submanifold.config.cache_keys import artifact_keys
from submanifold.config.experiment import EvaluationSettings, Experiment, flatten
from submanifold.config.resolve import resolve

__all__ = ["EvaluationSettings", "Experiment", "artifact_keys", "flatten", "resolve"]
