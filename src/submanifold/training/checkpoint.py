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
    """Write a module's state, the average of its weights and the optimizers' states.

    Args:
        path: The file.
        module: The module in training.
        ema: Its average.
        optimizers: Its optimizers, with disjoint weights.
        state: JSON-able state of the training.
        best: ``state_dict`` of the module at the best validation; empty before that.
        earlier: Where an existing checkpoint is moved.
    """
    tensors = {f"model/{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for (name, weight), average in zip(module.named_parameters(), ema.average, strict=True):
        tensors[f"average/{name}"] = average
        for optimizer in optimizers:
            moments = optimizer.state.get(weight, {})
            tensors |= {f"{kind}/{name}": value for kind, value in moments.items()}
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
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for label, tensor in checkpoint.tensors.items():
        group, _, name = label.partition("/")
        groups[group][name] = tensor
    try:
        module.load_state_dict(groups.pop("model"))
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint.path}: expected a checkpoint of this architecture, got another one "
            f"({error}). Delete its folder to train from the beginning, or restore the settings."
        ) from error
    best, averages = groups.pop("best", {}), groups.pop("average")
    for optimizer in optimizers:
        optimizer.state.clear()
    owners = {id(p): each for each in optimizers for g in each.param_groups for p in g["params"]}
    for (name, weight), average in zip(module.named_parameters(), ema.average, strict=True):
        average.copy_(averages[name])
        moments = {kind: _with_layout_of(weight, values[name])
                   for kind, values in groups.items() if name in values}  # fmt: skip
        if moments:
            owners[id(weight)].state[weight] = moments
    return checkpoint.state, best


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the last checkpoint, or the one before it if the last is damaged."""
    for path in (folder / LAST, folder / EARLIER):
        if path.exists():
            try:
                return read_checkpoint(path)
            except UserError as error:
                log.warning("%s is damaged (%s)", path, error.__cause__)
    return None


def _with_layout_of(weight: Tensor, value: Tensor) -> Tensor:
    """Put an optimizer's moment on the weight's device with the weight's memory layout.

    Fused Adam walks through weights and moments in memory order, and would apply moments of another
    layout to other weights.
    """
    if not value.ndim:  # a count of steps
        return value.to(weight.device)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)
