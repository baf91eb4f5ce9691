"""Nodes of the training pipeline."""

from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.device import choose_device
from submanifold.config.schema import LaunchSettings
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.calibration import calibrate
from submanifold.models import Hierarchy, Model, ModelSettings
from submanifold.runs.launch import call
from submanifold.runs.tracking import watch
from submanifold.training.phases import PhaseSettings, encode_rows, rotate_phase, train_phase
from submanifold.training.rotation import RotationSettings

MAX_NORMAL = 10_000
"""Validation images that calibrate anomaly scores."""


def train(
    train: np.ndarray,
    valid: np.ndarray,
    phase: PhaseSettings,
    model: ModelSettings,
    seed: int,
    device: str,
    launch: LaunchSettings,
    folder: Path,
    name: str,
    before: Hierarchy | None = None,
) -> dict[str, Any]:
    """Train the stages of a phase; see :func:`.train_phase`."""
    arguments = (phase, model, before, train, valid, seed, choose_device(device), folder, name,
                 launch.grad_accumulation_steps)  # fmt: skip
    trained, history = call(launch, train_phase, *arguments, folder=folder, on_log=watch())
    return {"model": trained, "history": history}


def rotate(
    train: np.ndarray,
    phase: RotationSettings,
    seed: int,
    device: str,
    launch: LaunchSettings,
    folder: Path,
    name: str,
    before: Hierarchy,
) -> dict[str, Any]:
    """Rotate the latents of a stage; see :func:`.rotate_phase`."""
    arguments = (phase, before, train, seed, choose_device(device), folder, name)
    rotated, history = call(launch, rotate_phase, *arguments, folder=folder, on_log=watch())
    return {"model": rotated, "history": history}


def encode(
    model: Hierarchy,
    train: np.ndarray,
    valid: np.ndarray,
    phase: PhaseSettings,
    seed: int,
    device: str,
    launch: LaunchSettings,
    u_train_path: Path,
    u_valid_path: Path,
) -> dict[str, np.ndarray]:
    """Encode the data as coordinates u, the input of a phase's first stage (Alg. 2, line 6)."""
    outer = model.part(1, phase.stages[0] - 1)
    on = choose_device(device)
    parts = {"u_train": (train, u_train_path), "u_valid": (valid, u_valid_path)}
    return {
        name: call(launch, encode_rows, outer, x, seed, on, path, folder=path.parent)
        for name, (x, path) in parts.items()
    }


def finish_images(
    model: Model,
    data: ImageSettings,
    valid: np.ndarray,
    device: str,
    launch: LaunchSettings,
    folder: Path,
    groups: Groups | None = None,
) -> Model:
    """Add the facts about the training images and the calibration of anomaly scores."""
    normal, numbers = valid[:MAX_NORMAL], groups_of(groups, "valid")
    numbers = None if numbers is None else numbers[:MAX_NORMAL]
    arguments = (model, normal, choose_device(device), numbers)
    model.data, model.calibration = data.facts, call(launch, calibrate, *arguments, folder=folder)
    return model


def finish_points(model: Model, data: SyntheticSettings) -> Model:
    """Add the facts about the training points."""
    model.data = data.facts
    return model
