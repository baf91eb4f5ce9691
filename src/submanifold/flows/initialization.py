"""Data-dependent initialization (Kingma & Dhariwal 2018, section 3.1)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class DataInitialized(nn.Module):
    """Module that can set its parameters from a batch; see :func:`initialize`."""

    uninitialized = False
    """Whether the next call initializes the module from its input."""

    def initialize_from(self, x: Tensor) -> None:
        """Set the parameters from a batch x of the module's inputs."""
        raise NotImplementedError

    def __call__(self, x: Tensor, *arguments: Any) -> Any:
        """Call :meth:`forward`, after :meth:`initialize_from` if the module is uninitialized."""
        if self.uninitialized:
            self.uninitialized = False
            with torch.no_grad():
                self.initialize_from(x)
        return super().__call__(x, *arguments)


@torch.no_grad()
def initialize(
    model: nn.Module,
    batch: Tensor,
    modules: Iterable[nn.Module] | None = None,
    context: Tensor | None = None,
) -> None:
    """Initialize the layers of a model, or of some of its modules, from one batch of its inputs.

    Example:
        >>> from submanifold.flows import ActNorm
        >>> flow = ActNorm(2)
        >>> initialize(flow, torch.tensor([[0.0, 1.0], [4.0, 1.5]]))
        >>> flow.shift.tolist(), flow.log_scale.exp().tolist()
        ([2.0, 1.25], [0.5, 4.0])
    """
    for part in [model] if modules is None else modules:
        for module in part.modules():
            if isinstance(module, DataInitialized):
                module.uninitialized = True
    model(batch) if context is None else model(batch, context)
