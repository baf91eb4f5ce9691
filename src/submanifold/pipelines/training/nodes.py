"""Nodes of the training pipeline."""

import copy
import logging
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.device import choose_device
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.calibration import calibrate
from submanifold.evaluation.gaussian import Gaussian
from submanifold.inference.training_events import training_hashes
from submanifold.models import Hierarchy, Model, ModelSettings
from submanifold.runs.tracking import log_callback
from submanifold.training.cost import fit_budget, with_steps
from submanifold.training.phases import PhaseSettings, encode_rows, rotate_phase, train_phase
from submanifold.training.rotation import RotationSettings

log = logging.getLogger(__name__)

MAX_NORMAL = 10_000  # validation events that calibrate anomaly scores
SHORT = 0.5  # fraction of the usual steps below which a time budget is called short


def schedule_steps(
    minutes: float | None, model: ModelSettings, data: Any, device: str, **phases: Any
) -> dict[str, Any]:
    """Return the steps of all phases, scaled to a time of training if there is one.

    ``data`` are any :data:`.DataSettings`; Kedro warns about unions. ``first`` are the first steps
    of trainings in the curves of the run.
    """
    usual = {name: phase.training.steps for name, phase in phases.items()
             if isinstance(phase, PhaseSettings)}  # fmt: skip
    steps: dict[str, int | None] = {
        name: usual.get(name, getattr(phase, "probes", None)) for name, phase in phases.items()
    }
    if minutes is not None:
        log.info("Timing a few steps of each phase")
        shape, on = data.event_shape, choose_device(device)
        steps = {**fit_budget(60 * minutes, model, phases, shape, on)}
        shown = ", ".join(f"{name} {count:,}" for name, count in steps.items())
        log.info("Training for %g min: %s. The evaluation follows", minutes, shown)
        if all((steps[name] or 0) < SHORT * count for name, count in usual.items()):
            log.warning(
                "The steps are less than %.0f%% of the default. Such a model shows that everything "
                "works; for good projections and samples use more minutes", 100 * SHORT
            )  # fmt: skip
    ends = accumulate((steps[name] or 0 for name in usual), initial=0)
    return {"minutes": minutes, "steps": steps, "first": dict(zip(usual, ends, strict=False))}


def encode(
    model: Hierarchy, train: np.ndarray, valid: np.ndarray, seed: int, device: str, stages: int
) -> dict[str, np.ndarray]:
    """Encode the data by the first ``stages`` as coordinates u (Alg. 2, line 6)."""
    outer, on = Hierarchy(model.stages[:stages]), choose_device(device)
    splits = {"u_train": train, "u_valid": valid}
    return {name: encode_rows(outer, x, seed, on) for name, x in splits.items()}


def train(
    train: np.ndarray, valid: np.ndarray, phase: PhaseSettings, model: ModelSettings,
    schedule: dict[str, Any], seed: int, device: str, checkpoints: Path, name: str,
    before: Hierarchy | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train the stages of a phase; see :func:`.train_phase`."""
    phase = with_steps(phase, schedule["steps"][name])
    trained, history = train_phase(
        phase, model, before, train, valid, seed, choose_device(device), checkpoints, name,
        log_callback(schedule["first"][name], phase.stages[0]),
    )  # fmt: skip
    return {"model": trained, "history": {**history, "minutes": schedule["minutes"]}}


def rotate(
    train: np.ndarray, phase: RotationSettings, schedule: dict[str, Any], seed: int, device: str,
    checkpoints: Path, name: str, before: Hierarchy,
) -> dict[str, Any]:  # fmt: skip
    """Rotate the latents of a stage; see :func:`.rotate_phase`."""
    phase = with_steps(phase, schedule["steps"][name])
    on = choose_device(device)
    rotated, history = rotate_phase(phase, before, train, seed, on, checkpoints, name)
    return {"model": rotated, "history": {**history, "minutes": schedule["minutes"]}}


def calibrate_model(
    model: Model, data: Any, train: np.ndarray, valid: np.ndarray, device: str, groups: Groups
) -> Model:
    """Add facts about the training data, their covariance and a calibration of anomaly scores."""
    numbers = groups_of(groups, "valid")
    normal, numbers = valid[:MAX_NORMAL], None if numbers is None else numbers[:MAX_NORMAL]
    calibrated = copy.copy(model)
    calibrated.data = data.facts
    calibrated.calibration = calibrate(model, normal, choose_device(device), numbers)
    calibrated.calibration["training"] = training_hashes(model, train, normal)
    if len(model.event_shape) == 3:
        calibrated.gaussian = Gaussian.fit(train, valid).to_tensors()
    return calibrated
