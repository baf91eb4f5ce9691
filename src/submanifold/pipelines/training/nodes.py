"""Nodes of the training pipeline."""

import logging
from itertools import accumulate
from pathlib import Path
from typing import Any

from submanifold.common.device import choose_device
from submanifold.data.events import Events
from submanifold.data.settings import TableSettings
from submanifold.evaluation.calibration import calibrate
from submanifold.evaluation.defensive import with_defensive_component
from submanifold.inference.training_events import training_hashes
from submanifold.models import Hierarchy, Model, ModelSettings
from submanifold.runs.tracking import log_callback
from submanifold.training.cost import fit_budget, longest_seconds, phase_costs, with_steps
from submanifold.training.cross_fitting import cross_fit
from submanifold.training.phases import (
    DENSITY,
    PhaseRun,
    PhaseSettings,
    encode_rows,
    rotate_phase,
    train_phase,
)
from submanifold.training.rotation import RotationSettings

log = logging.getLogger(__name__)

MAX_NORMAL = 10_000  # validation events that calibrate anomaly scores
REST = 45.0  # seconds of a time budget for the start, a brief evaluation and the report
SHORT = 0.5  # fraction of the usual steps below which a time budget is called short


def plan_steps(
    minutes: float | None, phases: dict[str, Any], model: ModelSettings, data: Any, device: str
) -> dict[str, Any]:
    """Return the steps of all phases, scaled by one factor to a time budget if there is one.

    Trainings then take at most ``seconds``, however busy the machine becomes.
    ``data`` are any :data:`.DataSettings`; Kedro warns about unions. ``first`` are the first steps
    of trainings in the curves of the run.
    """
    usual = {
        name: phase.training.steps
        for name, phase in phases.items()
        if isinstance(phase, PhaseSettings)
    }
    steps: dict[str, Any] = {name: getattr(phase, "probes", None) for name, phase in phases.items()}
    steps |= usual
    seconds: dict[str, float | None] = dict.fromkeys(phases)
    if minutes is not None:
        log.info("Timing a few steps of each phase")
        costs = phase_costs(model, phases, data.event_shape, choose_device(device))
        steps = {**fit_budget(max(60 * minutes - REST, 30 * minutes), costs)}
        seconds = longest_seconds(steps, costs)
        shown = ", ".join(f"{name} {count:,}" for name, count in steps.items())
        log.info("Steps in %g min: %s", minutes, shown)
        if all(steps[name] < SHORT * count for name, count in usual.items()):
            log.warning(
                "The steps are less than %.0f%% of the default. Such a model shows that everything "
                "works; for good projections and samples use more minutes",
                100 * SHORT,
            )
    ends = accumulate((steps[name] for name in usual), initial=0)
    starts = dict(zip(usual, ends, strict=False))
    return {"minutes": minutes, "steps": steps, "seconds": seconds, "first": starts}


def encode(
    model: Hierarchy, train: Events, valid: Events, stages: int, seed: int, device: str
) -> list[Events]:
    """Encode the data by the first ``stages`` as coordinates u (Alg. 2, line 6)."""
    outer, on = Hierarchy(model.stages[:stages]), choose_device(device)
    return [encode_rows(outer, x, seed, on) for x in (train, valid)]


def train(
    train: Events,
    valid: Events,
    before: Any,
    schedule: dict[str, Any],
    folder: str,
    name: str,
    phase: PhaseSettings,
    model: ModelSettings,
    data: Any,
    seed: int,
    device: str,
) -> tuple[Model, dict[str, Any]]:
    """Train the stages of a phase; see :func:`.train_phase`."""
    phase = with_steps(phase, schedule["steps"][name], schedule["seconds"][name])
    on_log = log_callback(schedule["first"][name], phase.stages[0])
    run = PhaseRun(name, seed, choose_device(device), folder, on_log)
    table = data.read().inputs if isinstance(data, TableSettings) else None
    trained, history = train_phase(phase, model, before, train, valid, run, table)
    return trained, {**history, "minutes": schedule["minutes"]}


def rotate(
    train: Events,
    before: Hierarchy,
    schedule: dict[str, Any],
    folder: str,
    name: str,
    phase: RotationSettings,
    seed: int,
    device: str,
) -> tuple[Model, dict[str, Any]]:
    """Rotate the latents of a stage; see :func:`.rotate_phase`."""
    phase = with_steps(phase, schedule["steps"][name])
    run = PhaseRun(name, seed, choose_device(device), folder)
    rotated, history = rotate_phase(phase, before, train, run)
    return rotated, {**history, "minutes": schedule["minutes"]}


def collect_histories(*histories: dict[str, Any]) -> dict[str, Any]:
    """Return the histories of all phases by name, in order."""
    return {history["name"]: history for history in histories}


def calibrate_model(model: Model, data: Any, train: Events, valid: Events, device: str) -> Model:
    """Add facts about the training data, a defensive component and a calibration of scores."""
    normal, on = valid[:MAX_NORMAL], choose_device(device)
    described = with_defensive_component(model.with_facts(data=data.facts), train, normal, on)
    calibration = calibrate(described, normal, on, train)
    calibration["training"] = training_hashes(described, train, normal)
    return described.with_facts(calibration=calibration)


def cross_calibrate_model(
    model: Model,
    phases: dict[str, Any],
    settings: ModelSettings,
    data: Any,
    train: Events,
    valid: Events,
    model_file: str,
    seed: int,
    device: str,
) -> Model:
    """Add densities of folds of all rows, which calibrate the scores; see :func:`.cross_fit`."""
    crossed = cross_fit(
        model.with_facts(data=data.facts),
        phases[DENSITY],
        settings,
        Events.concatenate([train, valid]),
        seed,
        choose_device(device),
        Path(model_file).parent,
        data.read().inputs,
    )
    training = training_hashes(crossed, train, valid)
    return crossed.with_facts(calibration={**crossed.calibration, "training": training})
