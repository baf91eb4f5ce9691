"""The interface that every flow has, and the composition of flows."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Bijection(nn.Module):
    r"""An invertible, differentiable map with a tractable Jacobian determinant.

    A density moves through it by the change of variables

    .. math:: \log p_X(x) = \log p_Z(f(x)) + \log|\det J_f(x)|.

    Subclasses define :meth:`forward` and :meth:`inverse`. The log-determinant is in nats, has shape
    (batch,) and keeps the latent's precision, whatever the autocast.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x of shape (batch, ...) to (z, log|det J| of shape (batch,))."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> Tensor:
        """Map z back to x."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Call :meth:`forward`; written out for its type."""
        return super().__call__(x)


class Flow(Bijection):
    """A bijection from events of a fixed shape to flat latents, which can be rebuilt by name.

    Attributes:
        event_shape: The shape of one event, such as (3, 32, 32) or (500,).
        config: The arguments that rebuild it: ``type(flow)(**flow.config)``.
    """

    event_shape: tuple[int, ...]
    config: dict[str, Any]


class Compose(Bijection):
    r"""The composition :math:`f_n \circ \dots \circ f_1`; log-determinants add up."""

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections: Sequence[Bijection] = nn.ModuleList(bijections)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the bijections in order."""
        log_det = x.new_zeros(len(x))
        for bijection in self.bijections:
            x, ld = bijection(x)
            log_det = log_det + ld
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Undo the bijections in the opposite order."""
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z)
        return z


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Keep what happens inside in x's own precision under an outer autocast.

    Latents and log-determinants need it: an error in them is an error of the density, where one in
    a coupling net only makes a slightly different net. That one is inverted exactly as long as it
    says the same both ways; in bfloat16 the rounding of its input can make it differ by 2^-8, so
    that an inverse is good to about 1e-4, and figures are measured without autocast.
    """
    with torch.autocast(x.device.type, enabled=False):
        yield
