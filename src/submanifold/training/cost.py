"""How long a training will take: what such a one took before, or by timing a few of its steps."""

import time
from typing import Any

import numpy as np
import torch

from submanifold.common.device import choose_device
from submanifold.config.schema import Experiment
from submanifold.data.batches import Batches
from submanifold.losses import Objective
from submanifold.models import Hierarchy, ModelSettings
from submanifold.training.phases import ROTATION_BATCH
from submanifold.training.rotation import (
    PROBES_PER_COORDINATE,
    RotationSettings,
    fit_rotation,
)
from submanifold.training.trainer import Trainer

STEPS = 3


def alike(experiment: Experiment, number: int) -> str:
    """Name what the cost of a phase depends on: equal for phases that cost the same."""
    phase, shape = list(experiment.phases.values())[number - 1], experiment.data.event_shape
    return repr([experiment.model, phase, shape, experiment.device])


def training_seconds(experiment: Experiment, number: int) -> float:
    """Time the seconds that one of an experiment's phases takes, on this machine as busy as now."""
    phase, shape = list(experiment.phases.values())[number - 1], experiment.data.event_shape
    measure: Any = _of_rotation if isinstance(phase, RotationSettings) else _of_training
    return measure(experiment.model, phase, shape, experiment.device)


def _of_training(model: ModelSettings, phase: Any, shape: tuple[int, ...], device: str) -> float:
    first, last = phase.stages[0], phase.stages[-1]
    on = choose_device(device)
    whole: Any = model.extend(None, shape, last)[0].to(on)
    for number in range(1, first):  # whose metric a penalty may ask for
        whole.stages[number - 1].add_rotation()
    outer = whole.part(1, first - 1).requires_grad_(False) if first > 1 else None
    objective = Objective(phase.terms, phase.input_noise, outer)
    settings = phase.training
    inner = whole if model.charts > 1 else whole.part(first, last)
    trainer = Trainer(inner, objective, settings)
    x = torch.rand(settings.batch_size, *trainer.model.event_shape, device=on) - 0.5
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        trainer.step(x)["loss"].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times) * settings.steps


def _of_rotation(
    model: ModelSettings, phase: RotationSettings, shape: tuple[int, ...], device: str
) -> float:
    on = choose_device(device)
    whole = Hierarchy(model.build(shape, last=phase.rotate)).to(on)
    inner = whole.part(phase.rotate)
    outer = whole.part(1, phase.rotate - 1) if phase.rotate > 1 else None
    rows = np.random.default_rng(0).normal(size=(ROTATION_BATCH, *inner.event_shape))
    batches = Batches(rows.astype(np.float32), ROTATION_BATCH, device=on)
    found = [fit_rotation(inner, batches, probes, outer) for probes in (1, 512)]
    (few, once), (many, longer) = ((each["probes"], each["seconds"]) for each in found)
    rotation = inner.stages[-1].rotation
    assert rotation is not None, "it was fitted"
    wanted = phase.probes or PROBES_PER_COORDINATE * rotation.directions
    # the eigenvectors take the same time whatever the number of probes
    return once + max(longer - once, 0) * (wanted - few) / (many - few)
