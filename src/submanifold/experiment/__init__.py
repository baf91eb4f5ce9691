"""From parameters to one typed experiment, the keys of its artifacts, and what it will cost."""

from submanifold.experiment.choose import choose
from submanifold.experiment.experiment import EvaluationSettings, Experiment, flatten
from submanifold.experiment.keys import artifact_keys

__all__ = ["EvaluationSettings", "Experiment", "artifact_keys", "choose", "flatten"]
