"""Nodes of the training pipeline."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.device import choose_device
from submanifold.evaluation.scores import QUICK, Calibration, score
from submanifold.experiment.experiment import LaunchSettings
from submanifold.manifold import Hierarchy, Model, ModelSettings
from submanifold.pipelines.tracking import watch
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
    before: Hierarchy | None = None,
) -> dict[str, Any]:
    """Train one phase's stages, by one process or several; see :func:`train_phase`."""
    fit = train_phase
    if launch.processes > 1:
        from submanifold.training.launch import train_by_processes

        fit = partial(train_by_processes, launch.processes)
    trained, history = fit(
        phase, model, before, train, valid, seed, choose_device(device), folder, watch()
    )
    return {"model": trained, "history": history}


def rotate(
    train: np.ndarray,
    phase: RotationSettings,
    seed: int,
    device: str,
    folder: Path,
    before: Hierarchy,
) -> dict[str, Any]:
    """Rotate the latents of a stage into an order; see :func:`rotate_phase`."""
    rotated, history = rotate_phase(
        phase, before, train, seed, choose_device(device), folder, watch()
    )
    return {"model": rotated, "history": history}


def encode(
    model: Hierarchy,
    train: np.ndarray,
    valid: np.ndarray,
    phase: PhaseSettings,
    seed: int,
    device: str,
    train_path: Path,
    valid_path: Path,
) -> dict[str, np.ndarray]:
    """Encode images as their coordinates u on the manifold that a phase begins at (Alg. 2, 6)."""
    outer = model.part(1, phase.stages[0] - 1)
    on = choose_device(device)
    return {
        "u_train": encode_rows(outer, train, seed, on, train_path),
        "u_valid": encode_rows(outer, valid, seed, on, valid_path),
    }


def finish_images(model: Model, data: ImageSettings, valid: np.ndarray, device: str) -> Model:
    """Tell the last phase's model what images it was trained on, and how others of them score."""
    scores = score(model.to(choose_device(device)), valid[:MOST_NORMAL])
    model.data, model.calibration = data.facts, Calibration.fit(scores, QUICK).to_dict()
    return model


def finish_points(model: Model, data: SyntheticSettings) -> Model:
    """Tell the last phase's model what points it was trained on."""
    model.data = data.facts
    return model
