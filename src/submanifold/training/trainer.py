"""One readable loop: images or vectors, all stages at once or one after the other."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from submanifold.data.batches import Batches
from submanifold.errors import UserError
from submanifold.flows import initialize, set_recompute
from submanifold.manifold import Hierarchy, Objective
from submanifold.manifold.diagnostics import (
    LARGEST_INVERSE_ERROR,
    inverse_error,
    is_overfitted,
    manifold_overfitting,
)
from submanifold.progress import Meter
from submanifold.training.checkpoint import EMA, load_checkpoint, save_checkpoint
from submanifold.validation import Settings

log = logging.getLogger(__name__)

LOG_EVERY = 10
SETBACKS = 3

Row = dict[str, float]
Log = Callable[[int, Row], None]


class TrainingSettings(Settings):
    """How a stage is trained."""

    steps: int = Field(gt=0, description="optimizer steps")
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0, description="Adam's, at its peak")
    warmup: int = Field(ge=0, description="steps over which the learning rate rises to its peak")
    schedule: Literal["cosine", "constant"]
    clip: float = Field(gt=0, description="largest norm of the gradient")
    ema: float = Field(ge=0, lt=1, description="decay of the averaged weights that are kept")
    validate_every: int = Field(gt=0, description="steps between validations and checkpoints")
    precision: Literal["auto", "float32", "bfloat16"]
    recompute: bool = Field(False, description="compute hidden layers twice, not keep them")


def fit(
    hierarchy: Hierarchy,
    objective: Objective,
    train: Batches,
    valid: Batches,
    settings: TrainingSettings,
    folder: Path,
    name: str = "training",
    on_log: Log | None = None,
) -> dict[str, Any]:
    """Train in place, and leave the averaged weights with the best validation loss in the module.

    Everything is a function of the initial weights, the seed of ``train`` and the settings: killed
    at any moment and called again with the same folder, it ends with the same weights.

    Args:
        hierarchy: The stages in training, on their device.
        objective: The loss, as (hierarchy, batch) -> terms.
        train: Training batches.
        valid: Validation batches; the same noise every time.
        settings: How to train.
        folder: Where checkpoints are kept: ``last.safetensors`` and ``best.safetensors``.
        name: What the progress bar calls it.
        on_log: Called as (step, values), values named ``train.*`` and ``valid.*``; a training that
            goes on hands out its earlier rows first.

    Returns:
        The history: ``name``, ``train`` and ``valid`` rows by step, ``best_step``, ``steps``,
        ``setbacks``, ``warnings`` by kind, ``seconds`` of training, and ``steps_trained``, the
        steps of this very call.

    Raises:
        UserError: The loss was not finite again after the learning rate was halved three times, or
            the folder holds a checkpoint of another architecture.
    """
    last, best = folder / "last.safetensors", folder / "best.safetensors"
    weights = list(hierarchy.parameters())
    fused = weights[0].is_floating_point() and weights[0].dtype != torch.float64
    optimizer = torch.optim.Adam(weights, lr=settings.learning_rate, fused=fused)
    ema = EMA(hierarchy, settings.ema)
    state: dict[str, Any] = {
        "step": 0, "train": [], "valid": [], "best_step": 0, "setbacks": 0, "warnings": {},
        "seconds": 0.0,
    }  # fmt: skip
    if last.exists():
        state = load_checkpoint(last, hierarchy, ema, optimizer)
        log.info("%s: going on at step %d of %d", name, state["step"], settings.steps)
        _replay(state, on_log)
    else:
        initialize(hierarchy, train.at(0))
        ema = EMA(hierarchy, settings.ema)
        save_checkpoint(last, hierarchy, ema, optimizer, state)

    precision = choose_precision(settings.precision, weights[0])
    before, started, rows_seen = state["step"], time.monotonic(), 0
    seconds_before = state["seconds"]
    hierarchy.train()
    set_recompute(hierarchy, settings.recompute)
    with Meter(name, "steps", settings.steps, done=state["step"]) as meter:
        while state["step"] < settings.steps:
            step = state["step"]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings) * 0.5 ** state["setbacks"]
            with torch.autocast(weights[0].device.type, precision, precision == torch.bfloat16):
                terms = objective(hierarchy, train.at(step), train.generator)
            terms["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(weights, settings.clip, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(step)
            state["step"] = step = step + 1
            rows_seen += train.batch_size

            checkpoint = step % settings.validate_every == 0 or step == settings.steps
            if step % LOG_EVERY == 0 or checkpoint:
                elapsed = time.monotonic() - started
                row = {key: float(value.detach()) for key, value in terms.items()}
                if not all(map(math.isfinite, [*row.values(), float(norm)])):
                    state = _set_back(state, last, hierarchy, ema, optimizer, settings, name)
                    continue
                row |= {"gradient_norm": float(norm), "rows_per_second": rows_seen / elapsed}
                _record(state, "train", step, row, on_log)
                meter.update(step - meter.done, _brief(row))
            if checkpoint:
                ema.swap()
                row = validate(hierarchy, objective, valid) | diagnose(hierarchy, valid)
                _warn(state["warnings"], row, step, name)
                if not state["valid"] or row["loss"] < _best_loss(state):
                    state["best_step"] = step
                    hierarchy.notes = {"step": step, **row}
                    hierarchy.save(best)
                ema.swap()
                _record(state, "valid", step, row, on_log)
                state["seconds"] = seconds_before + time.monotonic() - started
                save_checkpoint(last, hierarchy, ema, optimizer, state)

    chosen = Hierarchy.load(best, weights[0].device)
    hierarchy.load_state_dict(chosen.state_dict())
    hierarchy.notes = chosen.notes
    hierarchy.eval()
    set_recompute(hierarchy, False)
    history = {key: value for key, value in state.items() if key != "step"}
    return {
        "name": name,
        **history,
        "steps": settings.steps,
        "steps_trained": state["step"] - before,
    }


@torch.no_grad()
def validate(hierarchy: Hierarchy, objective: Objective, valid: Batches) -> Row:
    """Average the objective's terms over all rows, in the weights' own precision."""
    sums: dict[str, Tensor] = {}
    for batch in valid:
        for key, value in objective(hierarchy, batch, valid.generator).items():
            sums[key] = sums.get(key, 0) + value * len(batch)
    return {key: float(value) / len(valid) for key, value in sums.items()}


def diagnose(hierarchy: Hierarchy, valid: Batches) -> Row:
    """Measure what would make the figures of a validation worthless.

    Returns:
        ``inverse_error`` on the first batch; on continuous data, which may have no noise,
        ``thickness`` and ``neighbour_correlation`` of all of it (:func:`manifold_overfitting`).
    """
    row = {"inverse_error": inverse_error(hierarchy, next(iter(valid)))}
    if valid.is_continuous:
        thickness, correlation = manifold_overfitting(hierarchy, torch.cat(list(valid)))
        row |= {"thickness": thickness, "neighbour_correlation": correlation}
    return row


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Learning rate of a step: a linear rise, then half a cosine down to nothing, or constant."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def choose_precision(wanted: str, weight: Tensor) -> torch.dtype:
    """Turn ``auto`` into bfloat16 where the hardware multiplies it faster, else the weights' own.

    On a CPU that is one with AMX tiles, or with AVX-512's bfloat16 products.
    """
    if wanted == "auto":
        fast = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if weight.device.type == "cuda"
            else torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        )
        wanted = "bfloat16" if fast and weight.dtype == torch.float32 else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else weight.dtype


def choose_device(wanted: str) -> torch.device:
    """Turn ``auto`` into the fastest device there is.

    Raises:
        UserError: The device is unknown or not on this machine.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={wanted} cannot be used here: {str(error).splitlines()[0]} Allowed: auto, "
            "cpu, cuda, cuda:<n>. Change it with --params=device=auto."
        ) from error
    return device


def _set_back(
    state: dict[str, Any],
    last: Path,
    hierarchy: Hierarchy,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    name: str,
) -> dict[str, Any]:
    """Go back to the last checkpoint with half the learning rate."""
    setbacks, step = state["setbacks"] + 1, state["step"]
    if setbacks > SETBACKS:
        raise UserError(
            f"{name}: the loss or its gradient was not finite at step {step}, again after the "
            f"learning rate had been halved {SETBACKS} times. Lower training.learning_rate (now "
            f"{settings.learning_rate}) or training.clip, or lower penalty_weight."
        )
    optimizer.zero_grad()
    warnings = state["warnings"]
    state = load_checkpoint(last, hierarchy, ema, optimizer)
    state |= {"setbacks": setbacks, "warnings": warnings}
    save_checkpoint(last, hierarchy, ema, optimizer, state)
    log.warning(
        "%s: not finite at step %d; back to step %d with the learning rate halved (%d of %d)",
        name, step, state["step"], setbacks, SETBACKS,
    )  # fmt: skip
    return state


def _warn(warnings: dict[str, str], row: Row, step: int, name: str) -> None:
    """Say once for each kind what :func:`diagnose` has found."""
    found = {}
    if not row["inverse_error"] <= LARGEST_INVERSE_ERROR:
        found["inverse"] = (
            f"at step {step} the inverse misses its input by {row['inverse_error']:.2g} of the "
            f"data's spread (limit {LARGEST_INVERSE_ERROR}): samples and projections are not those "
            "of this density. Lower training.learning_rate, or take fewer steps or couplings"
        )
    if "thickness" in row and is_overfitted(row["thickness"], row["neighbour_correlation"]):
        found["overfitting"] = (
            f"manifold overfitting at step {step}: what is left off the manifold is "
            f"{row['thickness']:.2g} of the data's spread, and is alike for points that are "
            f"neighbours on it (correlation {row['neighbour_correlation']:.2f}): the data have no "
            "noise there. Their likelihood has no maximum and bits per dimension mean nothing. Add "
            "noise: data.noise, or stage_<n>.input_noise"
        )
    for kind, message in found.items():
        if kind not in warnings:
            warnings[kind] = message
            log.warning("%s: %s", name, message)


def _record(state: dict[str, Any], kind: str, step: int, row: Row, on_log: Log | None) -> None:
    state[kind].append({"step": step, **row})
    if on_log:
        on_log(step, {f"{kind}.{key}": value for key, value in row.items()})


def _replay(state: dict[str, Any], on_log: Log | None) -> None:
    for kind in ("train", "valid") if on_log else ():
        for row in state[kind]:
            values = {f"{kind}.{key}": value for key, value in row.items() if key != "step"}
            on_log(row["step"], values)  # type: ignore[misc]


def _best_loss(state: dict[str, Any]) -> float:
    best = next(row for row in state["valid"] if row["step"] == state["best_step"])
    return math.inf if math.isnan(best["loss"]) else best["loss"]


def _brief(row: Row) -> str:
    names = {"loss": "loss", "bits_per_dim": "BPD", "mse": "MSE"}
    shown = [f"{label} {row[key]:.4g}" for key, label in names.items() if key in row]
    return ", ".join([*shown, f"{row['rows_per_second']:.0f} rows/s"])
