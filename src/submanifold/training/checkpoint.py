"""What a training carries from step to step, and the file from which it goes on bit for bit."""

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

log = logging.getLogger(__name__)

LAST, EARLIER = "last.safetensors", "earlier.safetensors"
BEST = "best/"


class Checkpoint(NamedTuple):
    """What a checkpoint's file holds, read and compared with its checksum once."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class EMA:
    """Exponential moving average of a module's parameters.

    The decay grows as (1 + t) / (10 + t) up to its final value, so that a short training is not
    averaged with its start.

    Args:
        module: The module in training.
        decay: Final decay in [0, 1); 0 follows the weights themselves.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.weights: list[Tensor] = list(module.parameters())
        self.decay = decay
        self.reset()

    def reset(self) -> None:
        """Start from the weights as they are."""
        self.average = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average in place; a second call undoes it."""
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def save_checkpoint(
    path: Path,
    module: nn.Module,
    ema: EMA,
    optimizers: Sequence[Optimizer],
    state: dict[str, Any],
    best: dict[str, Tensor],
    earlier: Path | None = None,
) -> None:
    """Write weights, their average, rotations, the optimizers' moments and a JSON-able state.

    Args:
        path: The file.
        module: The module in training.
        ema: Its average.
        optimizers: Its optimizers, each of other weights.
        state: Step, history and whatever else the loop needs.
        best: The module's state where it was best; empty before that.
        earlier: Where the checkpoint goes that was there.
    """
    tensors: dict[str, Tensor] = {}
    for (name, weight), average in zip(module.named_parameters(), ema.average, strict=True):
        tensors[f"weights/{name}"] = weight
        tensors[f"average/{name}"] = average
        for optimizer in optimizers:
            for kind, value in optimizer.state.get(weight, {}).items():
                tensors[f"{kind}/{name}"] = value
    tensors |= {f"buffers/{name}": buffer for name, buffer in persistent(module).items()}
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
            f"The checkpoint {path} cannot be read ({error}). Delete its folder to train from the "
            "start."
        ) from error


@torch.no_grad()
def load_checkpoint(
    checkpoint: Checkpoint, module: nn.Module, ema: EMA, optimizers: Sequence[Optimizer]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore a training in place; returns the state and the best.

    Raises:
        UserError: The checkpoint belongs to another architecture.
    """
    weights = dict(module.named_parameters())
    path, tensors, state = checkpoint.path, dict(checkpoint.tensors), checkpoint.state
    try:
        for (name, weight), average in zip(weights.items(), ema.average, strict=True):
            _copy(weight, tensors.pop(f"weights/{name}"))
            _copy(average, tensors.pop(f"average/{name}"))
        for name, buffer in persistent(module).items():
            _copy(buffer, tensors.pop(f"buffers/{name}"))
        best = {label.removeprefix(BEST): tensors.pop(label)
                for label in list(tensors) if label.startswith(BEST)}  # fmt: skip
        moments: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        for label, value in tensors.items():
            kind, _, name = label.partition("/")
            moments[weights[name]][kind] = _laid_out_as(weights[name], value)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The checkpoint {path} cannot be resumed with this architecture ({error}). Delete its "
            "folder to train from the start, or go back to the settings it was made with."
        ) from error
    for optimizer in optimizers:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            optimizer.state.update({p: moments[p] for p in group["params"] if p in moments})
    return state, best


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the checkpoint to resume from: the last one, or the one before if that is damaged."""
    for name in (LAST, EARLIER):
        path = folder / name
        if not path.exists():
            continue
        try:
            return read_checkpoint(path)
        except UserError as error:
            log.warning("%s is damaged (%s)", path, error.__cause__)
    return None


def persistent(module: nn.Module) -> dict[str, Tensor]:
    """What a module's state has beside its parameters: rotations, which are fitted, not trained."""
    weights = {name for name, _ in module.named_parameters()}
    return {name: each for name, each in module.state_dict().items() if name not in weights}


def _laid_out_as(weight: Tensor, value: Tensor) -> Tensor:
    """Put a moment on the weight's device, laid out in memory as the weight is.

    The fused Adam walks through weights and moments in the order of memory, so that moments of
    another layout would be applied to other weights.
    """
    if not value.ndim:  # a count of steps
        return value.to(weight.device)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _copy(target: Tensor, source: Tensor) -> None:
    if target.shape != source.shape:
        raise ValueError(f"{tuple(source.shape)} stored, {tuple(target.shape)} expected")
    target.copy_(source)
