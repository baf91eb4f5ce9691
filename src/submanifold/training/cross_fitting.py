"""Densities of the folds of a cross-validation, whose p-values all events calibrate."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from submanifold.data.events import Events
from submanifold.evaluation.calibration import cross_calibrate
from submanifold.evaluation.defensive import with_defensive_component
from submanifold.models import CrossFitted, Model, ModelSettings, Neighbors
from submanifold.training.cost import with_steps
from submanifold.training.phases import DENSITY, PhaseSettings, train_phases

if TYPE_CHECKING:
    from submanifold.data.tables import Preprocessor

FOLDS = 5
STEPS = 0.6  #: Of the steps of the density, which each fold trains for.
VALIDATION = 0.1  #: Fraction of the training events that validates it.
MAX_NEIGHBORS = 2000  #: Rows of a table that are kept, for distances to them.


def assign_folds(events: Events, seed: int) -> np.ndarray:
    """Assign events (N, ...) to folds, 0 to 4, at random; groups of events are in one fold."""
    groups = np.arange(len(events)) if events.groups is None else events.groups
    _, group = np.unique(groups, return_inverse=True)
    return np.random.default_rng(seed).permutation(np.arange(group.max() + 1) % FOLDS)[group]


def cross_fit(
    manifold: Model,
    phase: PhaseSettings,
    model: ModelSettings,
    events: Events,
    seed: int,
    device: torch.device,
    folder: str | Path,
    table: "Preprocessor | None" = None,
) -> CrossFitted:
    """Train the density once without each fold of the events, and calibrate with all of them.

    A tenth of the others validates it, since a fold that chose the weights would score too well.
    ``phase`` is that of the density; the other arguments are those of :func:`.train_phases`.
    """
    of_fold = {DENSITY: with_steps(phase, max(1, round(STEPS * phase.training.steps)))}
    fold = assign_folds(events, seed)
    members: list[Any] = []
    for number in range(FOLDS):
        others = np.random.default_rng(seed + number).permutation(np.flatnonzero(fold != number))
        count = max(1, round(VALIDATION * len(others)))
        valid, train = events[others[:count]], events[others[count:]]
        place = Path(folder, f"fold-{number}")
        member = train_phases(of_fold, model, train, valid, seed + 1 + number, device, place, table)
        member = member.with_facts(data=manifold.data)
        members.append(with_defensive_component(member, train, valid, device))
    fitted: Any = manifold
    neighbors = None
    if table is not None and "condition" not in manifold.data:
        neighbors = choose_neighbors(table, events, fold, seed)
    crossed = CrossFitted(fitted, members, neighbors)
    crossed = crossed.with_facts(data=manifold.data, notes=manifold.notes)
    return crossed.with_facts(calibration=cross_calibrate(crossed, events, fold, device))


def choose_neighbors(
    table: "Preprocessor", events: Events, fold: np.ndarray, seed: int
) -> Neighbors:
    """Keep rows of events (N, D), at random at most :data:`MAX_NEIGHBORS`, with their folds (N,).

    They have no noise, see :meth:`.Preprocessor.without_noise`.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(events))[:MAX_NEIGHBORS])
    rows = table.without_noise(events.x, events.context)[chosen]
    neighbors = Neighbors(len(rows), rows.shape[1], FOLDS)
    return neighbors.set(torch.from_numpy(rows), torch.from_numpy(fold[chosen]))
