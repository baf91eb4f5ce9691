"""Checkpoints from which a training resumes bit for bit."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from submanifold.common.errors import UserError
from submanifold.models.io import load_tensors, save_tensors
from submanifold.training.ema import EMA

log = logging.getLogger(__name__)

LAST, EARLIER = "last.safetensors", "earlier.safetensors"
BEST = "best/"


class Checkpoint(NamedTuple):
    """Contents of a checkpoint file, verified by its checksum."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    path: Path,
    module: nn.Module,
    ema: EMA,
    optimizers: Sequence[Optimizer],
    state: dict[str, Any],
    best: dict[str, Tensor],
    earlier: Path | None = None,
) -> None:
    """Write weights, their average, persistent buffers and optimizer states.

    Args:
        path: The file.
        module: The module in training.
        ema: Its average.
        optimizers: Its optimizers, with disjoint weights.
        state: JSON-able state of the training.
        best: ``state_dict`` of the module at the best validation; empty before that.
        earlier: Where an existing checkpoint is moved.
    """
    tensors: dict[str, Tensor] = {}
    for (name, weight), average in zip(module.named_parameters(), ema.average, strict=True):
        tensors[f"weights/{name}"] = weight
        tensors[f"average/{name}"] = average
        for optimizer in optimizers:
            for kind, value in optimizer.state.get(weight, {}).items():
                tensors[f"{kind}/{name}"] = value
    tensors |= {f"buffers/{name}": buffer for name, buffer in _buffers(module).items()}
    tensors |= {f"{BEST}{name}": value for name, value in best.items()}
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_tensors(plain, path, {"state": state}, earlier)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        UserError: The file is missing, damaged, or not a checkpoint.
    """
    try:
        tensors, header = load_tensors(path)
        return Checkpoint(path, tensors, header["state"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: expected a checkpoint, got a file that cannot be read ({error}). Delete its "
            "folder to train from the beginning."
        ) from error


@torch.no_grad()
def load_checkpoint(
    checkpoint: Checkpoint, module: nn.Module, ema: EMA, optimizers: Sequence[Optimizer]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore a training in place; returns the arguments ``state`` and ``best`` of the save.

    Raises:
        UserError: The checkpoint belongs to another architecture.
    """
    weights = dict(module.named_parameters())
    path, tensors, state = checkpoint.path, dict(checkpoint.tensors), checkpoint.state
    try:
        for (name, weight), average in zip(weights.items(), ema.average, strict=True):
            _copy(weight, tensors.pop(f"weights/{name}"))
            _copy(average, tensors.pop(f"average/{name}"))
        for name, buffer in _buffers(module).items():
            _copy(buffer, tensors.pop(f"buffers/{name}"))
        best = {label.removeprefix(BEST): tensors.pop(label)
                for label in list(tensors) if label.startswith(BEST)}  # fmt: skip
        moments: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        for label, value in tensors.items():
            kind, _, name = label.partition("/")
            moments[weights[name]][kind] = _with_layout_of(weights[name], value)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: expected a checkpoint of this architecture, got another one ({error}). "
            "Delete its folder to train from the beginning, or restore the settings of the run."
        ) from error
    for optimizer in optimizers:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            optimizer.state.update({p: moments[p] for p in group["params"] if p in moments})
    return state, best


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the last checkpoint, or the one before it if the last is damaged."""
    for path in (folder / LAST, folder / EARLIER):
        if path.exists():
            try:
                return read_checkpoint(path)
            except UserError as error:
                log.warning("%s is damaged (%s)", path, error.__cause__)
    return None


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Persistent buffers, such as rotations, which are fitted instead of trained."""
    weights = {name for name, _ in module.named_parameters()}
    return {name: each for name, each in module.state_dict().items() if name not in weights}


def _with_layout_of(weight: Tensor, value: Tensor) -> Tensor:
    """Put an optimizer's moment on the weight's device with the weight's memory layout.

    Fused Adam walks through weights and moments in memory order, and would apply moments of another
    layout to other weights.
    """
    if not value.ndim:  # a count of steps
        return value.to(weight.device)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _copy(target: Tensor, source: Tensor) -> None:
    if target.shape != source.shape:
        raise ValueError(f"{tuple(source.shape)} stored, {tuple(target.shape)} expected")
    target.copy_(source)
