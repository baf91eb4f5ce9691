"""Duration of a training, estimated by timing a few of its steps."""

import time

import numpy as np
import torch

from submanifold.common.device import choose_device
from submanifold.data.batches import Batches
from submanifold.models import Hierarchy, ModelSettings
from submanifold.training.phases import ROTATION_BATCH_SIZE, PhaseSettings, assemble
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
    chosen, first = choose_device(device), phase.stages[0]
    outer = Hierarchy(model.build(shape, last=first - 1)).to(chosen) if first > 1 else None
    if isinstance(phase, RotationSettings):
        return _rotation_seconds(model, phase, outer, shape, chosen)
    for stage in outer.stages if outer else ():
        stage.add_rotation()  # a penalty may use its eigenvalues
    _, trained, _, objective = assemble(phase, model, outer, shape, chosen)
    trainer = Trainer(trained, objective, phase.training)
    x = torch.rand(phase.training.batch_size, *trained.event_shape, device=chosen) - 0.5
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        trainer.step(x)["loss"].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times) * phase.training.steps


def _rotation_seconds(
    model: ModelSettings,
    phase: RotationSettings,
    outer: Hierarchy | None,
    shape: tuple[int, ...],
    device: torch.device,
) -> float:
    stage = Hierarchy(model.build(shape, phase.rotate, phase.rotate)).to(device)
    rows = np.random.default_rng(0).normal(size=(ROTATION_BATCH_SIZE, *stage.event_shape))
    batches = Batches(rows.astype(np.float32), ROTATION_BATCH_SIZE, device=device)
    few, many = (fit_rotation(stage, batches, n, outer) for n in (FEW_PROBES, MANY_PROBES))
    rotation = stage.stages[-1].rotation
    assert rotation is not None
    probes = phase.probes or PROBES_PER_AXIS * rotation.directions
    # the eigendecomposition takes the same time for any number of probes
    slope = max(many["seconds"] - few["seconds"], 0) / (many["probes"] - few["probes"])
    return few["seconds"] + slope * (probes - few["probes"])
