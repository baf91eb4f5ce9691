"""Affine couplings: on halves of the channels (Glow) and on masked vectors (RealNVP)."""

import torch
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection

LOG_SCALE_LIMIT = 2.0


def bounded_log_scale(raw: Tensor) -> Tensor:
    """Squash a net's output into a log-scale within +-2, with slope 1 at 0.

    One coupling then scales by at most e^2 either way, which keeps the inverse of a deep flow from
    blowing up rounding errors.
    """
    return LOG_SCALE_LIMIT * torch.tanh(raw / LOG_SCALE_LIMIT)


class AffineCoupling(Bijection):
    r"""One half of the channels scales and shifts the other.

    .. math:: z_a = x_a, \qquad z_b = x_b\, e^{s(x_a)} + t(x_a)

    (Kingma & Dhariwal 2018, section 3.3.) The net's output starts at zero, so the coupling starts
    as the identity.

    Args:
        net: Maps (batch, channels / 2, h, w) to (batch, channels, h, w): raw log-scales, shifts.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform the second half of the channels."""
        a, b = x.chunk(2, dim=1)
        log_scale, shift = self._scale_and_shift(a)
        return torch.cat([a, b * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Restore the second half of the channels."""
        a, b = z.chunk(2, dim=1)
        log_scale, shift = self._scale_and_shift(a)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], 1)

    def _scale_and_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(a).to(a.dtype).chunk(2, dim=1)
        return bounded_log_scale(raw), shift


class MaskedAffineCoupling(Bijection):
    r"""The coordinates under the mask scale and shift the others.

    .. math:: z = m \odot x + (1 - m) \odot (x\, e^{s(m \odot x)} + t(m \odot x))

    (Dinh et al. 2017, eq. 9.)

    Args:
        mask: (dim,) of zeros and ones; ones pass unchanged.
        net: Maps (batch, dim) to (batch, 2 dim): raw log-scales and shifts.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, net: nn.Module):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform the unmasked coordinates of (batch, dim)."""
        log_scale, shift = self._scale_and_shift(x)
        return x * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Restore the unmasked coordinates."""
        log_scale, shift = self._scale_and_shift(z)
        return (z - shift) * (-log_scale).exp()

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(x * self.mask).to(x.dtype).chunk(2, dim=1)
        free = 1 - self.mask
        return bounded_log_scale(raw) * free, shift * free
