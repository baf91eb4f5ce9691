"""How long a training will take, by timing a few of its steps."""

import time
from functools import cache

import numpy as np
import torch

from submanifold.data.batches import Batches
from submanifold.device import choose_device
from submanifold.experiment.experiment import Experiment
from submanifold.manifold import Hierarchy, ModelSettings, Objective
from submanifold.training.phases import ROTATION_BATCH, PhaseSettings
from submanifold.training.rotation import (
    PROBES_PER_COORDINATE,
    RotationSettings,
    fit_rotation,
)
from submanifold.training.trainer import Trainer

STEPS = 3


def training_seconds(experiment: Experiment, number: int) -> float:
    """Estimate the seconds that one of an experiment's phases takes, on this machine now."""
    phase, shape = experiment.phases[number - 1], experiment.data.event_shape
    if isinstance(phase, RotationSettings):
        return _rotation_seconds(experiment.model, phase, shape, experiment.device)
    return _seconds_per_step(experiment.model, phase, shape, experiment.device) * (
        phase.training.steps
    )


@cache
def _seconds_per_step(
    model: ModelSettings,
    phase: PhaseSettings,
    shape: tuple[int, ...],
    device: str,
) -> float:
    first, last = phase.stages[0], phase.stages[-1]
    on = choose_device(device)
    whole = Hierarchy(model.build(shape, last=last)).to(on)
    outer = whole.part(1, first - 1).requires_grad_(False) if first > 1 else None
    objective = Objective(phase.terms, phase.input_noise, outer)
    settings = phase.training
    trainer = Trainer(whole.part(first, last), objective, settings)
    x = torch.rand(settings.batch_size, *trainer.model.event_shape, device=on) - 0.5
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        trainer.step(x)["loss"].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times)


@cache
def _rotation_seconds(
    model: ModelSettings, phase: RotationSettings, shape: tuple[int, ...], device: str
) -> float:
    """The probes' time; that of the eigenvectors is little beside it."""
    on = choose_device(device)
    whole = Hierarchy(model.build(shape, last=phase.rotate)).to(on)
    inner = whole.part(phase.rotate)
    outer = whole.part(1, phase.rotate - 1) if phase.rotate > 1 else None
    rows = np.random.default_rng(0).normal(size=(ROTATION_BATCH, *inner.event_shape))
    found = fit_rotation(
        inner, Batches(rows.astype(np.float32), ROTATION_BATCH, device=on), 1, outer
    )
    wanted = phase.probes or PROBES_PER_COORDINATE * inner.event_dim
    return found["seconds"] / found["probes"] * wanted
