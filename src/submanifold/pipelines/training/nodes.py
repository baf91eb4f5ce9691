"""Nodes of the training pipeline."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.device import choose_device
from submanifold.common.files import locked, read_json, write_json
from submanifold.config.schema import LaunchSettings
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.calibration import calibrate
from submanifold.inference.training_events import training_hashes
from submanifold.inverse.gaussian import Gaussian
from submanifold.models import Hierarchy, Model, ModelSettings
from submanifold.runs.launch import call
from submanifold.runs.tracking import watch
from submanifold.training.cost import fit_budget, with_steps
from submanifold.training.phases import PhaseSettings, encode_rows, rotate_phase, train_phase
from submanifold.training.rotation import RotationSettings

log = logging.getLogger(__name__)

MAX_NORMAL = 10_000
"""Validation events that calibrate anomaly scores."""
SHORT = 0.5
"""Fraction of the usual steps below which a time budget is called short."""

Budget = dict[str, Any]
"""The ``minutes`` of a training, and the ``steps`` of each phase, or probes of a rotation."""


def measure_budget(
    minutes: float,
    model: ModelSettings,
    data: Any,
    device: str,
    launch: LaunchSettings,
    folder: Path,
    **phases: Any,
) -> Budget:
    """Scale the steps of all phases to a time of training; see :func:`.fit_budget`.

    If several runs measure the same budget at once, all use the steps of the first. ``data`` are
    any :data:`.DataSettings`; Kedro warns about unions.
    """
    path = folder / "budget.json"
    with locked(folder, "the measurement of the steps"):
        budget: Budget | None = read_json(path)
        if budget is None:
            log.info("Timing a few steps of each phase")
            arguments = 60 * minutes, model, phases, data.event_shape, choose_device(device)
            steps = call(launch, fit_budget, *arguments, folder=folder)
            budget = {"minutes": minutes, "steps": steps}
            write_json(path, budget)  # before the lock is released; the catalog writes it again
    steps = budget["steps"]
    shown = ", ".join(f"{name} {count:,}" for name, count in steps.items())
    log.info("Training for %g min: %s. The evaluation follows", minutes, shown)
    usual = {name: phase.training.steps for name, phase in phases.items()
             if isinstance(phase, PhaseSettings)}  # fmt: skip
    if all(steps[name] < SHORT * count for name, count in usual.items()):
        log.warning(
            "The steps are less than %.0f%% of the default. Such a model shows that everything "
            "works; for good projections and samples use more minutes", 100 * SHORT
        )  # fmt: skip
    return budget


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
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Train the stages of a phase; see :func:`.train_phase`."""
    phase, note = _apply(budget, phase, name)
    arguments = (phase, model, before, train, valid, seed, choose_device(device), folder, name,
                 launch.grad_accumulation_steps)  # fmt: skip
    trained, history = call(launch, train_phase, *arguments, folder=folder, on_log=watch())
    return {"model": trained, "history": {**history, **note}}


def rotate(
    train: np.ndarray,
    phase: RotationSettings,
    seed: int,
    device: str,
    launch: LaunchSettings,
    folder: Path,
    name: str,
    before: Hierarchy,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Rotate the latents of a stage; see :func:`.rotate_phase`."""
    phase, note = _apply(budget, phase, name)
    arguments = (phase, before, train, seed, choose_device(device), folder, name)
    rotated, history = call(launch, rotate_phase, *arguments, folder=folder, on_log=watch())
    return {"model": rotated, "history": {**history, **note}}


def _apply(budget: Budget | None, phase: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Set the steps of a phase to those of a budget; also return a note for its history."""
    if budget is None:
        return phase, {}
    return with_steps(phase, budget["steps"][name]), {"minutes": budget["minutes"]}


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


def finish(
    model: Model,
    data: Any,
    train: np.ndarray,
    valid: np.ndarray,
    device: str,
    launch: LaunchSettings,
    folder: Path,
    groups: Groups | None = None,
) -> Model:
    """Add facts about the training data, their covariance and a calibration of anomaly scores.

    ``data`` are any :data:`.DataSettings`, as in :func:`measure_budget`.
    """
    normal, numbers = valid[:MAX_NORMAL], groups_of(groups, "valid")
    numbers = None if numbers is None else numbers[:MAX_NORMAL]
    arguments = (model, normal, choose_device(device), numbers)
    model.data, model.calibration = data.facts, call(launch, calibrate, *arguments, folder=folder)
    model.calibration["training"] = training_hashes(model, train, normal)
    if len(model.event_shape) == 3:
        model.gaussian = Gaussian.fit(train, valid).to_tensors()
    return model
