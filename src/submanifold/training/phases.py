"""Phases of a training: Alg. 1 of the paper is :func:`train_phase`, Alg. 2 :func:`train_phases`."""

import copy
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from pydantic import Field

from submanifold.common import distributed
from submanifold.common.device import SeededRandom
from submanifold.common.errors import unexpected
from submanifold.common.files import locked
from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.data.events import Events, EventsLike, as_events
from submanifold.losses import InputNoise, Loss
from submanifold.models import Hierarchy, Model, ModelSettings
from submanifold.models.settings import ContextSizes
from submanifold.training.loop import fit
from submanifold.training.monitor import Row
from submanifold.training.phase import Phase, TrainingSettings
from submanifold.training.rotation import RotationSettings, fit_rotation
from submanifold.training.trainer import TrainState

if TYPE_CHECKING:  # imports pandas
    from submanifold.data.tables import Preprocessor

log = logging.getLogger(__name__)

ROTATION_BATCH_SIZE = 64
DENSITY = "density"  #: Name of the phase that cross-calibration trains on each fold.

Log = Callable[[str, int, Row], None]


class PhaseSettings(Loss):
    """A phase of training: its loss, with one setting for each term, and what it trains.

    Attributes:
        stages: Numbers of the consecutive stages that are trained together.
        input_noise: Standard deviation sigma_x of the noise on the input, in its units; 0 except in
            DNF, and the largest scale in noise-conditional flows.
        input_noise_min: Smallest scale of the noise of a noise-conditional flow, whose scales are
            log-uniform between the two; None uses uniform scales from 0 (SoftFlow).
        training: How they are trained.
    """

    stages: tuple[int, ...] = Field(min_length=1)
    input_noise: float = Field(default=0.0, ge=0)
    input_noise_min: float | None = Field(default=None, gt=0)
    training: TrainingSettings


AnyPhaseSettings: TypeAlias = PhaseSettings | RotationSettings


@dataclass(frozen=True)
class PhaseRun:
    """One run of a phase: what it is called, its random numbers, and where it computes and writes.

    Attributes:
        name: Name of the phase in messages and logs.
        seed: Seed of new weights, of the order of batches and of their noise.
        device: Where it computes.
        folder: Folder of its checkpoints. A run in the folder of an earlier one resumes it.
        on_log: Function of the name, and of a step and its values as in :func:`.fit`, that is
            called with each row of the history.
    """

    name: str
    seed: int
    device: torch.device
    folder: str | Path
    on_log: Log | None = None

    def batches(
        self,
        events: EventsLike,
        batch_size: int,
        earlier_phases: int,
        redraw: Callable[..., Any] | None = None,
    ) -> Batches:
        """Return batches of events, in another order than those of earlier phases."""
        seed = self.seed + 2**32 * earlier_phases
        return Batches(events, batch_size, seed, self.device, redraw)

    def lock(self) -> AbstractContextManager[None]:
        """Lock the folder on rank 0, which alone writes."""
        is_writing = distributed.rank() == 0
        return locked(self.folder, self.name) if is_writing else nullcontext()


def train_phase(
    phase: PhaseSettings,
    model: ModelSettings,
    before: Model | None,
    train: EventsLike,
    valid: EventsLike,
    run: PhaseRun,
    table: "Preprocessor | None" = None,
) -> tuple[Model, dict[str, Any]]:
    """Train the stages of one phase, or resume the training in the same folder (:func:`.fit`).

    ``before`` is the model that the previous phase returned, if any; the stages before the phase's
    first one are frozen. ``train`` and ``valid`` are the input of its first stage: images, or u of
    the stages before it. If they have a context (:class:`.Events`), the model is conditional on it.
    Each batch of rows of a ``table`` is dequantized again, as images are.

    Returns the model with all stages trained so far, on the CPU, with a summary of each phase in
    its notes; and the history of :func:`.fit` with ``stages`` and the names of ``terms``.
    """
    settings, train = phase.training, as_events(train)
    _check_trim(phase, run.name)
    done = [] if before is None else before.notes["phases"]
    event_shape = train.x.shape[1:]
    model = model.sized(event_shape if before is None else before.event_shape)
    limited = model.limited(len(train))
    warned = _warn_of_few(phase, model, limited, before, len(train))
    # stages that are trained again see other noise
    redraw = table.redraw if table and table.has_noise and phase.stages[0] == 1 else None
    batches = run.batches(train, settings.batch_size, len(done), redraw)
    held_out = valid[: settings.validation_rows]
    validation = Batches(held_out, settings.batch_size, run.seed, run.device)
    random = SeededRandom(run.seed, run.device)
    start, sizes = copy.deepcopy(before), _context_sizes(train.context, table)
    with run.lock():
        with random.block():
            full, training = assemble(phase, limited, start, event_shape, run.device, sizes)
        on_row = run.on_log and partial(run.on_log, run.name)
        history = fit(training, batches, validation, run.folder, run.name, on_row, random)
    history |= {"stages": list(phase.stages), "terms": list(phase.terms)}
    history["warnings"] |= warned
    best = [row for row in history["valid"] if row["step"] == history["best_step"]][:1]
    note = {"stages": history["stages"], **(best[0] if best else {})}
    full = full.with_facts(notes={"phases": [*done, note]})
    return full.requires_grad_(True).eval().cpu(), history


def _check_trim(phase: PhaseSettings, name: str) -> None:
    """Raise a UserError if the fraction of a batch would be one of each of its parts."""
    count = distributed.shards(phase.training.grad_accumulation_steps)[0].count
    if phase.likelihood.trim and count > 1:
        expected, got = f"0 with batches in {count} parts", "a fraction of all events of a batch"
        fix = "Use one process, and training.grad_accumulation_steps=1"
        raise unexpected(f"{name}.likelihood.trim", expected, got, fix)


def _context_sizes(context: np.ndarray | None, table: "Preprocessor | None") -> ContextSizes:
    """Return the number of classes, or of columns and of those that the mask is of."""
    if context is None:
        return None
    is_labelled = context.ndim == 1
    sizes = {"classes": int(context.max()) + 1} if is_labelled else {"columns": context.shape[1]}
    if table is not None and len(table.maskable):
        sizes["mask"] = len(table.maskable)
    return sizes


def assemble(
    phase: PhaseSettings,
    model: ModelSettings,
    before: Model | None,
    event_shape: tuple[int, ...],
    device: torch.device,
    context: ContextSizes = None,
) -> tuple[Model, Phase]:
    """Return the model that a phase ends with, and the training of its stages."""
    first, last = phase.stages[0], phase.stages[-1]
    full, fresh = model.extend(before, event_shape, last, context)
    trained, outer = full.to(device), None
    if isinstance(full, Hierarchy):
        full.stages[last - 1].ordered |= phase.reconstruction.random_dim is not None
        trained = Hierarchy(full.stages[first - 1 : last])
        outer = Hierarchy(full.stages[: first - 1]).requires_grad_(False) if first > 1 else None
    noise = InputNoise(phase.input_noise, phase.input_noise_min)
    return full, Phase(trained.requires_grad_(True), phase, phase.training, outer, noise, fresh)


def rotate_phase(
    phase: RotationSettings,
    before: Hierarchy,
    train: EventsLike,
    run: PhaseRun,
) -> tuple[Hierarchy, dict[str, Any]]:
    """Rotate the latents of the stage that was trained last (:func:`.fit_rotation`).

    Arguments and results are those of :func:`train_phase`. The history has no steps, and the result
    of :func:`.fit_rotation` as ``rotation``.
    """
    done = before.notes["phases"]
    full = copy.deepcopy(before).to(run.device).eval()
    outer = Hierarchy(full.stages[: phase.rotate - 1]) if phase.rotate > 1 else None
    batches = run.batches(train, ROTATION_BATCH_SIZE, len(done))
    rotated = Hierarchy([full.stages[phase.rotate - 1]])
    with run.lock():
        title = f"{run.name}, rotation"
        fitted = fit_rotation(rotated, batches, phase.probes, outer, run.folder, title)
    note = {**(done[-1] if done else {}), "stages": [phase.rotate], "rotated": True}
    full = full.with_facts(notes={"phases": [*done, note]})
    history = TrainState(0, seconds=fitted["seconds"]).history()
    return full.cpu(), {
        "name": run.name,
        **history,
        "steps_trained": 0,
        "stages": [phase.rotate],
        "terms": [],
        "rotation": fitted,
    }


def train_phases(
    phases: Mapping[str, AnyPhaseSettings],
    model: ModelSettings,
    train: EventsLike,
    valid: EventsLike,
    seed: int,
    device: torch.device,
    folder: str | Path,
    table: "Preprocessor | None" = None,
) -> Model:
    """Train a model in phases, as the pipelines do, in one process (Alg. 2).

    ``phases`` are the settings by name, in order, and of each there is a folder in ``folder``. The
    other arguments are those of :func:`train_phase` and of :class:`PhaseRun`.
    """
    trained: Any = None
    for name, phase in phases.items():
        rows, held_out, run = train, valid, PhaseRun(name, seed, device, Path(folder, name))
        if phase.stages[0] > 1:
            outer = Hierarchy(trained.stages[: phase.stages[0] - 1])
            rows, held_out = (encode_rows(outer, x, seed, device) for x in (train, valid))
        if isinstance(phase, RotationSettings):
            trained, _ = rotate_phase(phase, trained, rows, run)
        else:
            trained, _ = train_phase(phase, model, trained, rows, held_out, run, table)
    return trained


@torch.no_grad()
def encode_rows(model: Model, events: EventsLike, seed: int, device: torch.device) -> Events:
    """Encode events (N, ...) as coordinates u on a model's manifold (Alg. 2, line 6).

    The seed is that of the dequantization noise. Returns (N, d) float32 with the context of the
    events.
    """
    model = copy.deepcopy(model).to(device).eval()
    batches = track(Batches(events, 256, seed, device), "encoding", len(events))
    on_rank = partial(distributed.map_shards, lambda x, context: model(x, context)[0])
    encoded = np.concatenate([on_rank(*batch).cpu().numpy() for batch in batches])
    return Events(encoded, as_events(events).context)


def _warn_of_few(
    phase: PhaseSettings, model: ModelSettings, limited: ModelSettings, before: Any, count: int
) -> dict[str, str]:
    """Log which new stages have a smaller dimension than in the settings; return the warning."""
    built = len(before.stages) if isinstance(before, Hierarchy) else 0
    text = ". ".join(
        f"stage_{n}.dim: expected at most {new.dim} with {count} training events, got {old.dim}; "
        f"trained with {new.dim}. Add training events, or set a smaller stage_{n}.dim"
        for n, (old, new) in enumerate(zip(model.stages, limited.stages, strict=True), 1)
        if n > built and n in phase.stages and new.dim != old.dim
    )
    if text and distributed.rank() == 0:
        log.warning("%s", text)
    return {"dim": text} if text else {}
