"""A phase: which stages are trained, what is minimised, and how (Alg. 1 and 2)."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, create_model

from submanifold.data.arrays import write_rows
from submanifold.data.batches import Batches
from submanifold.files import locked
from submanifold.manifold import Hierarchy, Model, ModelSettings, Objective
from submanifold.manifold.objective import TERMS, Term
from submanifold.progress import track
from submanifold.training.trainer import Row, TrainingSettings, fit
from submanifold.validation import Settings

VALIDATION_ROWS = 512


class _Phase(Settings):
    """What is about training.

    Attributes:
        stages: Numbers of the stages that are trained together, one after the other.
        input_noise: sigma_x, in the units of what the first of them acts on; 0 but in DNF.
        training: How they are trained.
    """

    stages: tuple[int, ...] = Field(min_length=1)
    input_noise: float = Field(default=0.0, ge=0)
    training: TrainingSettings

    @property
    def terms(self) -> dict[str, Term]:
        """The terms of the loss by name."""
        return {name: getattr(self, name) for name in TERMS}


PhaseSettings = create_model("PhaseSettings", __base__=_Phase, **TERMS)  # type: ignore[call-overload]
"""A phase with its terms: a setting for each of :data:`TERMS`."""


def train_phase(
    phase: Any,
    model: ModelSettings,
    before: Hierarchy | None,
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    device: torch.device,
    folder: Path,
    on_log: Callable[[str, int, Row], None] | None = None,
) -> tuple[Hierarchy, dict[str, Any]]:
    """Train the stages of one phase; a finished or half-finished training is found (:func:`fit`).

    Stages before the phase's first are frozen. Those that no phase before has trained are built.

    Args:
        phase: Its settings.
        model: What the stages are.
        before: The model that the phase before left, if there is one.
        train: What the phase's first stage acts on: images, or u of the stages before it.
        valid: The same of the validation images.
        seed: Of new weights, of the order of batches and of their noise.
        device: Where it is trained.
        folder: Where its checkpoints are kept.
        on_log: Called with the name of the phase, and as :func:`fit` says.

    Returns:
        The model with all stages that were trained so far, on the CPU, whose notes say what each
        phase did; and the history of :func:`fit`, with the numbers of the phase's ``stages`` and
        the names of its ``terms``.
    """
    first, last = phase.stages[0], phase.stages[-1]
    stages, done, shape = [], [], train.shape[1:]
    if before is not None:
        stages = list(copy.deepcopy(before).stages)  # the caller's stays as it is
        done, shape = before.notes["phases"], before.event_shape
    torch.manual_seed(seed)
    fresh = model.build(shape, len(stages) + 1, last)
    whole = Hierarchy([*stages, *fresh]).to(device)
    outer = whole.part(1, first - 1).requires_grad_(False) if first > 1 else None
    trained = whole.part(first, last).requires_grad_(True)
    objective = Objective(phase.terms, phase.input_noise, outer)
    settings, name = phase.training, f"phase_{len(done) + 1}"
    stream = seed + 2**32 * len(done)  # stages that are trained again see other noise
    with locked(folder, name):
        history = fit(
            trained,
            objective,
            Batches(train, settings.batch_size, stream, device),
            Batches(valid[:VALIDATION_ROWS], settings.batch_size, seed, device),
            settings,
            folder,
            name,
            on_log and partial(on_log, name),
            fresh,
        )
    if on_log:
        on_log(name, settings.steps, {"steps_trained": history["steps_trained"]})
    whole.notes = {"phases": [*done, {"stages": list(phase.stages), **trained.notes}]}
    return whole.cpu(), {**history, "stages": list(phase.stages), "terms": list(objective.active)}


@torch.no_grad()
def encode_rows(
    model: Model, array: np.ndarray, seed: int, device: torch.device, path: Path
) -> np.ndarray:
    """Encode images as their coordinates u on the manifold of a model (Alg. 2, line 6).

    Args:
        model: The stages before those that are trained on u.
        array: Images or points, (N, ...).
        seed: Of the noise.
        device: Where it is computed.
        path: The file that is written, or found.

    Returns:
        (N, d) float32, a copy-on-write map of the file.
    """
    batches = Batches(array, batch_size=256, seed=seed, device=device)
    shown = track(batches, f"encoding {path.stem}", len(array))
    model = model.to(device).eval()
    encoded = (model.encode(batch)[0].cpu().numpy() for batch in shown)
    return write_rows(path, encoded, (len(array), model.dim))
