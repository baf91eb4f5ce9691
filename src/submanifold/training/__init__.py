"""Training: one loop with checkpoints that resume bit for bit, and the phases that call it."""

from submanifold.training.loop import fit
from submanifold.training.phase import Phase, TrainingSettings
from submanifold.training.phases import (
    PhaseRun,
    PhaseSettings,
    encode_rows,
    rotate_phase,
    train_phase,
    train_phases,
)
from submanifold.training.rotation import RotationSettings, fit_rotation
from submanifold.training.trainer import Trainer

__all__ = [
    "Phase",
    "PhaseRun",
    "PhaseSettings",
    "RotationSettings",
    "Trainer",
    "TrainingSettings",
    "encode_rows",
    "fit",
    "fit_rotation",
    "rotate_phase",
    "train_phase",
    "train_phases",
]
