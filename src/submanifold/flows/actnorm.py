"""Activation normalisation (Kingma & Dhariwal 2018, section 3.1)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection


class ActNorm(Bijection):
    r"""A scale and a shift for each channel, :math:`z = (x - b)\, e^{s}`.

    It starts as the identity; :func:`initialize` sets it from data so that z has mean 0 and
    variance 1 in each channel.

    Args:
        channels: Number of channels, the second axis of x: (batch, channels, ...).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.pending = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise (batch, channels, ...)."""
        if self.pending:
            self.fit(x)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        z = (x - self.shift.view(shape)) * self.log_scale.exp().view(shape)
        return z, (self.log_scale.sum() * x.shape[2:].numel()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Undo the normalisation."""
        shape = (1, -1) + (1,) * (z.ndim - 2)
        return z * (-self.log_scale).exp().view(shape) + self.shift.view(shape)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set shift and scale from a batch."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        self.shift.copy_(x.mean(axes))
        self.log_scale.copy_(-x.std(axes, correction=0).clamp_min(1e-6).log())
        self.pending = False


@torch.no_grad()
def initialize(flow: nn.Module, x: Tensor, fresh: Iterable[nn.Module] | None = None) -> None:
    """Set what a flow, or its fresh parts, sets from data from one batch x, layer after layer."""
    for part in [flow] if fresh is None else fresh:
        for module in part.modules():
            if hasattr(module, "pending"):
                module.pending = True  # type: ignore[assignment]
    flow(x)
