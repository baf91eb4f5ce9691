"""Reshaping layers of multi-scale flows: squeezes and splits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.common.errors import unexpected
from submanifold.flows.bijection import Bijection
from submanifold.flows.context import Context
from submanifold.flows.coupling import zero_initialized


class Squeeze(Bijection):
    """Trade 2x2 pixels for four channels: (batch, c, h, w) to (batch, 4c, h/2, w/2)."""

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        return space_to_channels(x), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        return channels_to_space(z)


def space_to_channels(x: Tensor) -> Tensor:
    """Trade 2x2 pixels for four channels: (batch, c, h, w) to (batch, 4c, h/2, w/2).

    :func:`torch.nn.functional.pixel_unshuffle`, also for empty batches, whose shape it keeps.
    """
    if x.shape[0]:
        return F.pixel_unshuffle(x, 2)
    _, channels, height, width = x.shape
    return x.reshape(0, 4 * channels, height // 2, width // 2)


def channels_to_space(z: Tensor) -> Tensor:
    """Invert :func:`space_to_channels`."""
    if z.shape[0]:
        return F.pixel_shuffle(z, 2)
    _, channels, height, width = z.shape
    return z.reshape(0, channels // 4, 2 * height, 2 * width)


def check_divisible(shape: Sequence[int], factor: int, setting: str) -> None:
    """Raise a :class:`UserError` unless ``factor`` divides the height and the width of an image."""
    _, height, width = shape
    if height % factor or width % factor:
        expected = f"image sides divisible by {factor}"
        fix = "Change it, or resize the images, such as to data.size=32"
        raise unexpected(setting, expected, f"{height}x{width} pixels", fix)


class Split(nn.Module):
    r"""Split off half of the channels as latents, standardized given the other half.

    .. math:: v = (x_b - \mu(x_a))\, e^{-s(x_a)}

    The prior of Glow's split latents thus is a part of the bijection: v is standard normal, and
    v = 0 decodes to the conditional mean (:ref:`theory-3-6`).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.prior = zero_initialized(nn.Conv2d(channels // 2, channels, 3, padding=1))[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split (batch, c, h, w) into (kept, latent), each (batch, c/2, h, w), and the log-det."""
        kept, latent = x.chunk(2, dim=1)
        mean, log_std = self._prior(kept)
        return kept, (latent - mean) * (-log_std).exp(), -log_std.flatten(1).sum(1)

    def inverse(self, kept: Tensor, latent: Tensor) -> Tensor:
        """Join the halves."""
        mean, log_std = self._prior(kept)
        return torch.cat([kept, latent * log_std.exp() + mean], 1)

    def _prior(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.prior(kept).to(kept.dtype).chunk(2, dim=1)
        return mean, 4 * torch.tanh(raw / 4)
