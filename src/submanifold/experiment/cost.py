"""How long a training will take, by timing a few of its steps."""

import time
from functools import cache

import torch

from submanifold.device import choose_device
from submanifold.experiment.experiment import Experiment
from submanifold.manifold import Hierarchy, ModelSettings, Objective
from submanifold.training.phases import PhaseSettings
from submanifold.training.trainer import Trainer

STEPS = 3


def training_seconds(experiment: Experiment, number: int) -> float:
    """Estimate the seconds that one of an experiment's phases takes, on this machine now."""
    phase, shape = experiment.phases[number - 1], experiment.data.event_shape
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
