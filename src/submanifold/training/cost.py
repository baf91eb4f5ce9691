"""Duration of a training, estimated by timing a few of its steps."""

import time
from typing import Any

import numpy as np
import torch

from submanifold.common.device import choose_device
from submanifold.data.batches import Batches
from submanifold.losses import Objective
from submanifold.models import Hierarchy, ModelSettings
from submanifold.training.phases import ROTATION_BATCH_SIZE, PhaseSettings
from submanifold.training.rotation import PROBES_PER_AXIS, RotationSettings, fit_rotation
from submanifold.training.trainer import Trainer

STEPS = 3
FEW_PROBES, MANY_PROBES = 1, 512


def training_seconds(
    model: ModelSettings,
    phase: PhaseSettings | RotationSettings,
    shape: tuple[int, ...],
    device: str,
) -> float:
    """Estimate the seconds that a phase takes on this machine under its current load.

    Args:
        model: Settings of the stages.
        phase: Settings of the phase.
        shape: Shape of an event of the data.
        device: As in :func:`.choose_device`.
    """
    seconds: Any = _rotation_seconds if isinstance(phase, RotationSettings) else _steps_seconds
    return seconds(model, phase, shape, choose_device(device))


def _steps_seconds(
    model: ModelSettings, phase: PhaseSettings, shape: tuple[int, ...], device: torch.device
) -> float:
    settings, first, last = phase.training, phase.stages[0], phase.stages[-1]
    full: Any = model.extend(None, shape, last)[0].to(device)
    for stage in full.stages[: first - 1] if first > 1 else ():
        stage.add_rotation()  # a penalty may use its eigenvalues
    outer = full.part(1, first - 1).requires_grad_(False) if first > 1 else None
    objective = Objective(phase.terms, phase.input_noise, outer)
    trainer = Trainer(full if model.charts > 1 else full.part(first, last), objective, settings)
    x = torch.rand(settings.batch_size, *trainer.model.event_shape, device=device) - 0.5
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        trainer.step(x)["loss"].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times) * settings.steps


def _rotation_seconds(
    model: ModelSettings, phase: RotationSettings, shape: tuple[int, ...], device: torch.device
) -> float:
    full = Hierarchy(model.build(shape, last=phase.rotate)).to(device)
    stage = full.part(phase.rotate)
    outer = full.part(1, phase.rotate - 1) if phase.rotate > 1 else None
    rows = np.random.default_rng(0).normal(size=(ROTATION_BATCH_SIZE, *stage.event_shape))
    batches = Batches(rows.astype(np.float32), ROTATION_BATCH_SIZE, device=device)
    few, many = (fit_rotation(stage, batches, n, outer) for n in (FEW_PROBES, MANY_PROBES))
    rotation = stage.stages[-1].rotation
    assert rotation is not None
    probes = phase.probes or PROBES_PER_AXIS * rotation.directions
    # the eigendecomposition takes the same time for any number of probes
    slope = max(many["seconds"] - few["seconds"], 0) / (many["probes"] - few["probes"])
    return few["seconds"] + slope * (probes - few["probes"])
