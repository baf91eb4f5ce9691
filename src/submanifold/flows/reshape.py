"""Layers that move numbers about: space to channels, and half of the channels out of the flow."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection


class Squeeze(Bijection):
    """Trade 2x2 pixels for four channels: (batch, c, h, w) to (batch, 4c, h/2, w/2)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Space to channels; it only permutes, so the log-determinant is zero."""
        return space_to_channels(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Channels back to space."""
        return channels_to_space(z, 2)


def space_to_channels(x: Tensor, side: int) -> Tensor:
    """Trade patches of pixels for channels: (batch, c, h, w) to (batch, c side^2, h/side, w/side).

    As :func:`torch.nn.functional.pixel_unshuffle`, which returns 0 images in their old shape.
    """
    if len(x):
        return F.pixel_unshuffle(x, side)
    _, channels, height, width = x.shape
    return x.reshape(0, channels * side**2, height // side, width // side)


def channels_to_space(z: Tensor, side: int) -> Tensor:
    """Undo :func:`space_to_channels`."""
    if len(z):  # the gradient of pixel_shuffle is pixel_unshuffle
        return F.pixel_shuffle(z, side)
    _, channels, height, width = z.shape
    return z.reshape(0, channels // side**2, height * side, width * side)


class Split(nn.Module):
    r"""Send half of the channels out as latents, standardised by what the other half predicts.

    .. math:: v = (x_b - \mu(x_a))\, e^{-s(x_a)}

    With Glow's prior of the split latents folded into the bijection they are standard normal, and
    v = 0 decodes their conditional mean (method.md 3.6).

    Args:
        channels: Channels of the input; half of them stay.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.prior = nn.Conv2d(channels // 2, channels, 3, padding=1)
        nn.init.zeros_(self.prior.weight)
        nn.init.zeros_(self.prior.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split (batch, c, h, w) into (kept, latent), each (batch, c/2, h, w), and the log-det."""
        kept, latent = x.chunk(2, dim=1)
        mean, log_std = self._prior(kept)
        return kept, (latent - mean) * (-log_std).exp(), -log_std.flatten(1).sum(1)

    def inverse(self, kept: Tensor, latent: Tensor) -> Tensor:
        """Join the two halves again."""
        mean, log_std = self._prior(kept)
        return torch.cat([kept, latent * log_std.exp() + mean], 1)

    def _prior(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.prior(kept).to(kept.dtype).chunk(2, dim=1)
        return mean, 4 * torch.tanh(raw / 4)
