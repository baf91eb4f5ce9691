"""Nodes of the training pipeline."""

from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.device import choose_device
from submanifold.config.schema import LaunchSettings
from submanifold.data.groups import Groups, groups_of
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.evaluation.calibration import calibrate
from submanifold.models import Hierarchy, Model, ModelSettings
from submanifold.runs.launch import call
from submanifold.runs.tracking import watch
from submanifold.training.phases import PhaseSettings, encode_rows, rotate_phase, train_phase
from submanifold.training.rotation import RotationSettings

MOST_NORMAL = 10_000


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
    """Train one phase's stages; see :func:`train_phase`."""
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
    """Rotate the latents of a stage into an order; see :func:`rotate_phase`."""
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
    train_path: Path,
    valid_path: Path,
) -> dict[str, np.ndarray]:
    """Encode images as their coordinates u on the manifold that a phase begins at (Alg. 2, 6)."""
    outer = model.part(1, phase.stages[0] - 1)
    on = choose_device(device)

    def encoded(rows: np.ndarray, path: Path) -> np.ndarray:
        return call(launch, encode_rows, outer, rows, seed, on, path, folder=path.parent)

    return {"u_train": encoded(train, train_path), "u_valid": encoded(valid, valid_path)}


def finish_images(
    model: Model,
    data: ImageSettings,
    valid: np.ndarray,
    device: str,
    launch: LaunchSettings,
    folder: Path,
    groups: Groups | None = None,
) -> Model:
    """Tell the last phase's model what images it was trained on, and how others of them score."""
    of_valid = groups_of(groups, "valid")
    some = None if of_valid is None else of_valid[:MOST_NORMAL]
    arguments = (model, valid[:MOST_NORMAL], choose_device(device), some)
    model.data, model.calibration = data.facts, call(launch, calibrate, *arguments, folder=folder)
    return model


def finish_points(model: Model, data: SyntheticSettings) -> Model:
    """Tell the last phase's model what points it was trained on."""
    model.data = data.facts
    return model
