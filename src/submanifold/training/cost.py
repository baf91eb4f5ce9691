"""Duration of trainings, estimated by timing a few of their steps, and time budgets."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from submanifold.data.batches import Batches
from submanifold.models import Hierarchy, ModelSettings
from submanifold.training.phases import ROTATION_BATCH_SIZE, PhaseSettings, assemble
from submanifold.training.rotation import PROBES_PER_AXIS, RotationSettings, fit_rotation
from submanifold.training.trainer import Trainer

STEPS = 5
PROBES = 512
STEPS_SHARE = 0.85
"""Of the time of a training; the rest is for validations and checkpoints."""

Phase = PhaseSettings | RotationSettings


@dataclass(frozen=True)
class PhaseCost:
    """Duration of a phase, in seconds, on this machine under its current load."""

    fixed: float  # such as of an eigendecomposition
    per_step: float  # or of a probe of a rotation
    steps: int  # or probes


def phase_cost(
    model: ModelSettings, phase: Phase, shape: tuple[int, ...], device: torch.device
) -> PhaseCost:
    """Time a few steps, or probes, of a phase for events of a shape."""
    first = phase.stages[0]
    outer = Hierarchy(model.build(shape, last=first - 1)).to(device) if first > 1 else None
    if isinstance(phase, RotationSettings):
        rotated = Hierarchy(model.build(shape, first, first)).to(device)
        rows = np.random.default_rng(0).normal(size=(ROTATION_BATCH_SIZE, *rotated.event_shape))
        batches = Batches(rows.astype(np.float32), ROTATION_BATCH_SIZE, device=device)
        fitted = fit_rotation(rotated, batches, PROBES, outer)
        # sums over the probes are a small part of a decomposition
        fixed = fitted["decomposition_seconds"]
        per_probe = (fitted["seconds"] - fixed) / fitted["probes"]
        rotation: Any = rotated.stages[0].rotation
        return PhaseCost(fixed, per_probe, phase.probes or PROBES_PER_AXIS * rotation.directions)
    for stage in outer.stages if outer else ():
        stage.add_rotation()  # a penalty may use its eigenvalues
    _, trained, _, objective = assemble(phase, model, outer, shape, device)
    trainer = Trainer(trained, objective, phase.training)
    x = torch.rand(phase.training.batch_size, *trained.event_shape, device=device) - 0.5
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        trainer.step(x)["loss"].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return PhaseCost(0.0, statistics.median(times), phase.training.steps)


def fit_budget(
    seconds: float,
    model: ModelSettings,
    phases: Mapping[str, Phase],
    shape: tuple[int, ...],
    device: torch.device,
) -> dict[str, int]:
    """Scale the steps, or probes, of all phases by one factor, so that they take a given time.

    Every phase has at least one step. If the time is short for the rotations' decompositions, half
    of it is for the steps, and training takes longer.
    """
    costs: dict[str, PhaseCost] = {}
    rotations: dict[int, PhaseCost] = {}
    for name, phase in phases.items():
        if not isinstance(phase, RotationSettings):
            costs[name] = phase_cost(model, phase, shape, device)
            continue
        if phase.rotate not in rotations:
            default = phase.model_copy(update={"probes": None})
            rotations[phase.rotate] = phase_cost(model, default, shape, device)
        cost = rotations[phase.rotate]
        costs[name] = replace(cost, steps=phase.probes or cost.steps)
    variable = sum(cost.per_step * cost.steps for cost in costs.values())
    fixed = sum(cost.fixed for cost in costs.values())
    factor = STEPS_SHARE * max(seconds - fixed, seconds / 2) / variable
    return {name: max(1, round(factor * cost.steps)) for name, cost in costs.items()}


def with_steps(phase: Any, steps: int | None) -> Any:
    """Return the settings of a phase with other steps, or probes of a rotation.

    With fewer steps the warmup is shorter in proportion; the cooldown always is.
    """
    if isinstance(phase, RotationSettings):
        return phase.model_copy(update={"probes": steps})
    training = phase.training
    warmup = min(training.warmup, round(training.warmup * steps / training.steps))
    changed = training.model_copy(update={"steps": steps, "warmup": warmup})
    return phase.model_copy(update={"training": changed})
