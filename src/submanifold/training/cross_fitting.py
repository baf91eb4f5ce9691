"""Models of the folds of a cross-validation, which give a density and calibrate its p-values."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from submanifold.models import CrossFitted, Hierarchy, ModelSettings
from submanifold.training.cost import with_steps
from submanifold.training.phases import PhaseSettings, train_phases

if TYPE_CHECKING:
    from submanifold.data.tables import Preprocessor

FOLDS = 5
STEPS = 0.6  #: Of the steps of the density, which each fold trains for.
VALIDATION = 0.1  #: Fraction of the training events that validates it.
DENSITY = "density"  #: Name of the phase that the folds train.


def fold_numbers(count: int, seed: int) -> np.ndarray:
    """Draw the fold of each of ``count`` events, (count,); their sizes differ by at most one."""
    return np.random.default_rng(seed).permutation(np.arange(count) % FOLDS)


def cross_fit(
    manifold: Hierarchy,
    phase: PhaseSettings,
    model: ModelSettings,
    events: np.ndarray,
    fold: np.ndarray,
    seed: int,
    device: torch.device,
    folder: str | Path,
    table: "Preprocessor | None" = None,
) -> CrossFitted:
    """Train the density once without each fold of the events.

    A tenth of the others validates it, since a fold that chose the weights would score too well.

    ``fold`` is the number of the fold of each event, (N,), and ``phase`` that of the density. The
    other arguments are those of :func:`.train_phases`.
    """
    of_fold = {DENSITY: with_steps(phase, max(1, round(STEPS * phase.training.steps)))}
    folds: list[Any] = []
    for number in range(FOLDS):
        others = np.random.default_rng(seed + number).permutation(np.flatnonzero(fold != number))
        count = max(1, round(VALIDATION * len(others)))
        rows, place = (events[others[count:]], events[others[:count]]), f"fold-{number}"
        trained = train_phases(
            of_fold, model, *rows, seed + 1 + number, device, Path(folder, place), table
        )
        folds.append(trained)
    return CrossFitted(manifold, folds)
