"""Data-dependent initialization (Kingma & Dhariwal 2018, section 3.1)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class DataInitialized(nn.Module):
    """Base class of modules that set their parameters from a batch.

    Subclasses implement :meth:`initialize_from`; :func:`initialize` applies it.

    Attributes:
        uninitialized: Whether the next call initializes the module from its input.
    """

    uninitialized = False

    def initialize_from(self, x: Tensor) -> None:
        """Set the parameters from a batch x of the module's inputs."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Any:
        """Call :meth:`forward`, after :meth:`initialize_from` if the module is uninitialized."""
        if self.uninitialized:
            self.uninitialized = False
            with torch.no_grad():
                self.initialize_from(x)
        return super().__call__(x)


@torch.no_grad()
def initialize(model: nn.Module, batch: Tensor, modules: Iterable[nn.Module] | None = None) -> None:
    """Initialize a model layer by layer, each from what the layers before it return for a batch.

    Args:
        model: The model.
        batch: Its input.
        modules: The parts of the model to initialize; None initializes all of it.

    Example:
        >>> flow = ActNorm(3)
        >>> initialize(flow, 5 + 2 * torch.randn(1000, 3))
        >>> flow.shift.round(), flow.log_scale.exp().round(decimals=1)
        (tensor([5., 5., 5.]...), tensor([0.5000, 0.5000, 0.5000]...))
    """
    for part in [model] if modules is None else modules:
        for module in part.modules():
            if isinstance(module, DataInitialized):
                module.uninitialized = True
    model(batch)
