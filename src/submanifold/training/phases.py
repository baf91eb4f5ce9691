"""A phase: which stages are trained, what is minimised, and how (Alg. 1 and 2)."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, create_model
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.files import locked
from submanifold.common.progress import track
from submanifold.common.settings import Settings
from submanifold.data.arrays import write_npy
from submanifold.data.batches import Batches
from submanifold.losses import Objective
from submanifold.losses.objective import TERMS, Term
from submanifold.models import Hierarchy, Model, ModelSettings
from submanifold.training.rotation import RotationSettings, fit_rotation
from submanifold.training.trainer import Row, TrainingSettings, fit, log_rows

log = logging.getLogger(__name__)

VALIDATION_ROWS = 512
ROTATION_BATCH = 64
PROBES_WITHIN = 2  # for each latent, where a rotation is one of several


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
    before: Model | None,
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    device: torch.device,
    folder: Path,
    name: str,
    on_log: Callable[[str, int, Row], None] | None = None,
) -> tuple[Model, dict[str, Any]]:
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
        name: Name of the phase.
        on_log: Called with the name of the phase, and as :func:`fit` says.

    Returns:
        The model with all stages that were trained so far, on the CPU, whose notes say what each
        phase did; and the history of :func:`fit`, with the numbers of the phase's ``stages`` and
        the names of its ``terms``.
    """
    whole: Any
    first, last = phase.stages[0], phase.stages[-1]
    done = [] if before is None else before.notes["phases"]
    settings = phase.training
    torch.manual_seed(seed)
    # the caller's stays as it is
    whole, fresh = model.extend(copy.deepcopy(before), train.shape[1:], last)
    if settings.rotate_every and whole.stages[last - 1].rotation is None:
        whole.stages[last - 1].add_rotation()
    whole = whole.to(device)
    outer = whole.part(1, first - 1).requires_grad_(False) if first > 1 else None
    trained = whole if model.charts > 1 else whole.part(first, last).requires_grad_(True)
    objective = Objective(phase.terms, phase.input_noise, outer)
    stream = _stream(seed, done)
    batches = Batches(train, settings.batch_size, stream, device)

    def rotate(step: int) -> None:
        probes = PROBES_WITHIN * trained.stages[-1].latent_dim
        fit_rotation(trained, batches, probes, outer, first=step, name=f"{name}, rotation")

    with locked(folder, name) if distributed.rank() == 0 else nullcontext():
        history = fit(
            trained,
            objective,
            batches,
            Batches(valid[:VALIDATION_ROWS], settings.batch_size, seed, device),
            settings,
            folder,
            name,
            on_log and partial(on_log, name),
            fresh,
            rotate,
        )
    if on_log:
        on_log(name, settings.steps, {"steps_trained": history["steps_trained"]})
    whole.notes = {"phases": [*done, {"stages": list(phase.stages), **trained.notes}]}
    _tell_cost(name, phase, history, done)
    return whole.cpu(), {**history, "stages": list(phase.stages), "terms": list(objective.active)}


def rotate_phase(
    phase: RotationSettings,
    before: Hierarchy,
    train: np.ndarray,
    seed: int,
    device: torch.device,
    folder: Path,
    name: str,
    on_log: Callable[[str, int, Row], None] | None = None,
) -> tuple[Hierarchy, dict[str, Any]]:
    """Rotate the latents of one stage, the last that was trained (:func:`fit_rotation`).

    Args:
        phase: Its settings.
        before: The model that the phase before left.
        train: What the stage acts on: images, or u of the stages before it.
        seed: Of the choice of data and of the probes.
        device: Where it is computed.
        folder: Where a killed run's probes are kept.
        name: Name of the phase.
        on_log: Called with the name of the phase, the count of probes, and what they have found.

    Returns:
        The model, on the CPU, and a history as of :func:`train_phase`, without steps, which has
        what :func:`fit_rotation` found under ``rotation``.
    """
    done = before.notes["phases"]
    whole = copy.deepcopy(before).to(device).eval()
    outer = whole.part(1, phase.rotate - 1) if phase.rotate > 1 else None
    with locked(folder, name) if distributed.rank() == 0 else nullcontext():
        found = fit_rotation(
            whole.part(phase.rotate, phase.rotate),
            Batches(train, ROTATION_BATCH, _stream(seed, done), device),
            phase.probes,
            outer,
            folder=folder,
            name=f"{name}, rotation",
        )
    log.info("%s: stage %d rotated by %d probes", name, phase.rotate, found["probes"])
    last = done[-1] if done else {}
    whole.notes = {"phases": [*done, {**last, "stages": [phase.rotate], "rotated": True}]}
    history = {
        "name": name, "train": [], "valid": [], "best_step": 0, "rollbacks": 0, "warnings": {},
        "seconds": found["seconds"], "steps": 0, "steps_trained": 0, "stages": [phase.rotate],
        "terms": [], "rotation": found,
    }  # fmt: skip
    if on_log:
        replay(history, on_log)
    return whole.cpu(), history


def replay(history: Mapping[str, Any], on_log: Callable[[str, int, Row], None]) -> None:
    """Log what a phase has logged, from its history: that of a phase that is not run again."""
    name = history["name"]
    log_rows(history, partial(on_log, name))
    if found := history.get("rotation"):
        for d, error in zip(found["dims"], found["mse"], strict=True):
            on_log(name, d, {"first_order_mse": error})
    else:
        on_log(name, history["steps"], {"steps_trained": 0})


def _stream(seed: int, done: Sequence[Any]) -> int:
    """A seed for each phase: stages that are trained again see other noise."""
    return seed + 2**32 * len(done)


def _tell_cost(name: str, phase: Any, history: dict[str, Any], done: Sequence[Any]) -> None:
    """Log what a target has cost; a target that was not reached is a warning of the history."""
    target = getattr(phase.reconstruction, "target", None)
    if target is None or not history["valid"]:
        return
    row = next(row for row in history["valid"] if row["step"] == history["best_step"])
    weight, cost = row["reconstruction_weight"], ""
    if "bits_per_dim" in row:  # not of a model without a density on all of space
        started = history["valid"][0]["bits_per_dim"]
        before = done[-1].get("bits_per_dim", started) if done else started
        cost = f"; bits per dimension went from {before:.3f} to {row['bits_per_dim']:.3f}"
    log.info(
        "%s: mean squared error %.3g, target %.3g, lambda %.3g%s",
        name, row["image_mse"], target.error, weight, cost,
    )  # fmt: skip
    if target.excess(row):
        history["warnings"]["target"] = warning = (
            f"reconstruction.target: expected a mean squared error of at most {target.error:.3g} "
            f"on validation data, got {row['image_mse']:.3g} (lambda {weight:.3g}; it started at "
            f"{phase.reconstruction.weight:g}). Increase training.steps, reconstruction.weight or "
            "the dim of the stage, or choose a larger error"
        )
        log.warning("%s: %s", name, warning)


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
        (N, d) float32, a copy-on-write map of the file, which the first of several processes
        writes.
    """
    batches = Batches(array, batch_size=256, seed=seed, device=device)
    shown = track(batches, f"encoding {path.stem}", len(array))
    model = model.to(device).eval()

    def encode(x: Tensor) -> Tensor:
        return model.encode(x)[0]

    encoded = (distributed.by_rows(encode, batch).cpu().numpy() for batch in shown)
    if distributed.rank() == 0:
        write_npy(path, encoded, (len(array), model.dim))
    if distributed.size() > 1:
        for _ in encoded:  # all compute, also where the file is found
            pass
        distributed.wait()
    return np.load(path, mmap_mode="c")
