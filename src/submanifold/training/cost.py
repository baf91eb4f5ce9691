"""Duration of trainings, estimated by timing a few of their steps, and time budgets."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from submanifold.common.threads import choose_one_or_all
from submanifold.data.batches import Batches
from submanifold.models import Hierarchy, ModelSettings
from submanifold.training import rotation
from submanifold.training.phases import AnyPhaseSettings, assemble
from submanifold.training.rotation import RotationSettings
from submanifold.training.trainer import Trainer

BATCH_SIZE = 32  # of a measured round of probes
PART = 2  # of which one of the latents of a measured decomposition are; its time is cubic in them
STEPS_SHARE = 0.85  #: Of the time of a training; the rest is for validations and checkpoints.


@dataclass(frozen=True)
class PhaseCost:
    """Duration of a phase, in seconds, on this machine under its current load."""

    fixed: float  # such as of an eigendecomposition
    per_step: float  # or of a probe of a rotation
    steps: int  # or probes


def phase_cost(
    model: ModelSettings, phase: AnyPhaseSettings, shape: tuple[int, ...], device: torch.device
) -> PhaseCost:
    """Time a few steps, or probes, of a phase for events of a shape."""
    first = phase.stages[0]
    outer = Hierarchy(model.build(shape, last=first - 1)).to(device) if first > 1 else None
    if isinstance(phase, RotationSettings):
        rotated = Hierarchy(model.build(shape, first, first)).to(device)
        added: Any = rotated.stages[0].add_rotation()
        rows = np.random.default_rng(0).normal(size=(BATCH_SIZE, *rotated.event_shape))
        batches = Batches(rows.astype(np.float32), BATCH_SIZE, device=device)
        draw = partial(rotation.draw_probes, rotated, batches, outer, 0)
        choose_one_or_all(draw)
        started = time.perf_counter()
        drawn = draw().float()
        per_probe, started = (time.perf_counter() - started) / len(drawn), time.perf_counter()
        count = None if added.is_dense else max(1, added.directions // PART)
        rotation.principal_axes(drawn[:, : max(1, drawn.shape[1] // PART)], count).sum().item()
        fixed = PART**3 * (time.perf_counter() - started)
        probes = phase.probes or rotation.PROBES_PER_AXIS * added.directions
        return PhaseCost(fixed, per_probe, probes)
    for stage in outer.stages if outer else ():
        stage.add_rotation()  # a penalty may use its eigenvalues
    trainer = Trainer(assemble(phase, model, outer, shape, device)[1])
    x = torch.rand(phase.training.batch_size, *trainer.model.event_shape, device=device) - 0.5

    def seconds() -> float:
        started = time.perf_counter()
        trainer.step(x)["loss"].item()  # waits for the device
        return time.perf_counter() - started

    seconds()  # the first step is slower
    choose_one_or_all(seconds)
    return PhaseCost(0.0, statistics.median(seconds() for _ in range(3)), phase.training.steps)


@torch.random.fork_rng(devices=())
def phase_costs(
    model: ModelSettings,
    phases: Mapping[str, AnyPhaseSettings],
    shape: tuple[int, ...],
    device: torch.device,
) -> dict[str, PhaseCost]:
    """Time a few steps, or probes, of all phases for events of a shape."""
    threads, costs = torch.get_num_threads(), dict[str, PhaseCost]()
    measure = cache(lambda phase: phase_cost(model, phase, shape, device))
    try:
        for name, phase in phases.items():
            if isinstance(phase, RotationSettings):
                cost = measure(RotationSettings(rotate=phase.rotate))
                costs[name] = replace(cost, steps=phase.probes or cost.steps)
            else:
                costs[name] = measure(phase)
    finally:
        torch.set_num_threads(threads)
    return costs


def fit_budget(seconds: float, costs: Mapping[str, PhaseCost]) -> dict[str, int]:
    """Scale the steps, or probes, of all phases by one factor, so that they take a given time.

    Every phase has at least one step. If the time is short for the rotations' decompositions, half
    of it is for the steps, and training takes longer.
    """
    variable = sum(cost.per_step * cost.steps for cost in costs.values())
    fixed = sum(cost.fixed for cost in costs.values())
    factor = STEPS_SHARE * max(seconds - fixed, seconds / 2) / variable
    return {name: max(1, round(factor * cost.steps)) for name, cost in costs.items()}


def longest_seconds(
    steps: Mapping[str, int], costs: Mapping[str, PhaseCost]
) -> dict[str, float | None]:
    """Return the duration of each training with these steps; None for rotations."""
    return {
        name: None if cost.fixed else cost.per_step * steps[name] / STEPS_SHARE
        for name, cost in costs.items()
    }


def with_steps(phase: Any, steps: int | None, seconds: float | None = None) -> Any:
    """Return the settings of a phase with other steps, or probes of a rotation.

    With fewer steps the warmup is shorter in proportion; the cooldown always is. A training takes
    at most ``seconds``.
    """
    if isinstance(phase, RotationSettings):
        return phase.model_copy(update={"probes": steps})
    training = phase.training
    warmup = min(training.warmup, round(training.warmup * steps / training.steps))
    update = {"steps": steps, "warmup": warmup, "seconds": seconds or training.seconds}
    changed = training.model_copy(update=update)
    return phase.model_copy(update={"training": changed})
