"""SoftFlow (Kim et al. 2020): flows that are told how much noise there is in what they see."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from submanifold.flows.coupling import Coupling
from submanifold.flows.glow import Glow
from submanifold.flows.realnvp import RealNVP


class NoiseConditional(nn.Module):
    r"""A linear layer whose outputs also depend on the noise's scale, :math:`W a + b + w\, s`.

    It starts as the layer itself, w = 0.

    Args:
        layer: The layer: linear, or a convolution.

    Attributes:
        scale: s for each event, (batch,), as a share of the largest; None is none.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(torch.zeros(len(layer.weight)))
        self.scale: Tensor | None = None

    def forward(self, a: Tensor) -> Tensor:
        """Apply the layer to (batch, ...)."""
        out = self.layer(a)
        if self.scale is None:
            return out
        each = self.scale[:, None] * self.weight
        return out + each.view(*each.shape, *(1 for _ in out.shape[2:]))


def _condition_on_noise(flow: nn.Module) -> None:
    """Have the second layer of every coupling net in the flow be told."""
    for coupling in [each for each in flow.modules() if isinstance(each, Coupling)]:
        coupling.net[2] = NoiseConditional(coupling.net[2])  # type: ignore[index, operator]
        coupling.can_checkpoint = False  # by then it would no longer be told


def is_noise_conditional(flow: nn.Module) -> bool:
    """Whether a flow has to be told how much noise there is."""
    return any(isinstance(each, NoiseConditional) for each in flow.modules())


@contextmanager
def noise_conditioning(flow: nn.Module, scale: Tensor | None) -> Iterator[None]:
    """Tell a flow the noise's scale of each event, (batch,): 0 to 1, of the largest it is told."""
    told = [each for each in flow.modules() if isinstance(each, NoiseConditional)]
    for each in told:
        each.scale = scale
    try:
        yield
    finally:
        for each in told:
            each.scale = None


class SoftRealNVP(RealNVP):
    r"""A RealNVP of noisy vectors, whose couplings are told the noise's scale.

    Data on a manifold have no density in space, but :math:`x + s\,\sigma\,\epsilon` has one for
    every s > 0. The flow is trained on all of them, s ~ U(0, 1) (Kim et al. 2020, "SoftFlow:
    Probabilistic Framework for Normalizing Flow on Manifolds", section 3), and samples with s = 0,
    which is what it is told outside of :func:`noise_conditioning`. It has a density, :math:`p(x
    \mid s)`, and
    no manifold of its own.

    Its arguments are those of :class:`RealNVP`.

    Example:
        >>> flow = SoftRealNVP(4)
        >>> with noise_conditioning(flow, torch.rand(3)):
        ...     z, log_det = flow(torch.randn(3, 4))
    """

    @wraps(RealNVP.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        _condition_on_noise(self)


class SoftGlow(Glow):
    """A Glow of noisy images, as :class:`SoftRealNVP`; its arguments are those of :class:`Glow`."""

    @wraps(Glow.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        _condition_on_noise(self)
