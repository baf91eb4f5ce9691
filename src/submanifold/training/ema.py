"""Exponential moving average of weights."""

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a module's parameters.

    The decay grows as (1 + t) / (10 + t) up to its final value, so that the average of a short
    training does not include its start. Unlike :class:`torch.optim.swa_utils.AveragedModel` it can
    be exchanged with the weights in place.

    Args:
        module: The module in training.
        decay: Final decay in [0, 1); 0 makes the average equal to the weights.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.weights: list[Tensor] = list(module.parameters())
        self.decay = decay
        self.reset()

    def reset(self) -> None:
        """Set the average to the current weights."""
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
