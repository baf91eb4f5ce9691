"""Checkpoints from which a training resumes bit for bit."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from submanifold.common.errors import UserError
from submanifold.models.io import load_tensors, save_tensors
from submanifold.training.optimizers import EMA

log = logging.getLogger(__name__)

LAST, EARLIER = "last.safetensors", "earlier.safetensors"

Row = dict[str, float]


@dataclass
class TrainState:
    """Progress of a training, apart from tensors.

    Attributes:
        step: Number of optimizer steps done.
        train: Logged values of training, each row with its ``step``.
        valid: The same of validations.
        best_step: Step of the best validation.
        rollbacks: How often the training went back to a checkpoint, halving the learning rates.
        warnings: Messages by kind.
        seconds: Time spent in training.
        threads: Number of steps by number of threads. Steps with different numbers differ by
            rounding.
    """

    step: int = 0
    train: list[Row] = field(default_factory=list)
    valid: list[Row] = field(default_factory=list)
    best_step: int = 0
    rollbacks: int = 0
    warnings: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    threads: dict[str, int] = field(default_factory=dict)

    @property
    def best_row(self) -> Row | None:
        """The best validation, if there was any."""
        return next((row for row in self.valid if row["step"] == self.best_step), None)

    def history(self) -> dict[str, Any]:
        """What :func:`.fit` returns of it."""
        history = asdict(self)
        del history["step"]
        return history


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
    """Write a training's weights and state, and move an existing checkpoint to ``earlier``.

    ``state`` is JSON-able, and ``best`` the ``state_dict`` at the best validation, or empty.
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
    """Read what :func:`save_checkpoint` wrote, or raise a :class:`UserError`."""
    try:
        tensors, header = load_tensors(path)
        return Checkpoint(path, tensors, header["state"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: expected a checkpoint, got a file that cannot be read ({error}). Delete its "
            "folder to train from the beginning."
        ) from error


def first_intact(*paths: Path) -> Checkpoint | None:
    """Read the first file that exists and is a checkpoint, if there is one."""
    for path in paths:
        if path.exists():
            try:
                return read_checkpoint(path)
            except UserError as error:
                log.warning("%s is damaged (%s)", path, error.__cause__)
    return None


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
    for average, (name, _) in zip(ema.average, module.named_parameters(), strict=True):
        average.copy_(averages[name])
    names = {weight: name for name, weight in module.named_parameters()}
    for optimizer in optimizers:
        optimizer.state.clear()
        for weight in [weight for group in optimizer.param_groups for weight in group["params"]]:
            for kind, values in groups.items():
                if names[weight] in values:
                    value = _with_layout_of(weight, values[names[weight]])
                    optimizer.state[weight][kind] = value
    return checkpoint.state, best


def _with_layout_of(weight: Tensor, value: Tensor) -> Tensor:
    """Put an optimizer's moment on the weight's device with the weight's memory layout.

    Fused Adam walks through weights and moments in memory order.
    """
    if not value.ndim:  # a count of steps
        return value.to(weight.device)
    return torch.empty_like(weight, dtype=value.dtype).copy_(value)
