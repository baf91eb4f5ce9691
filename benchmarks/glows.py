"""The same Glow in four implementations: this project's, and those of three packages.

Every one has three levels on images with a squeeze, K steps and a split on each; a step is
an activation normalisation, a channel mixing and an affine coupling whose net is 3x3-1x1-3x3. The
packages differ in the mixing (FrEIA's is fixed) and in how a scale is made positive.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows import Glow

LEVELS = 3
SHAPE = (3, 32, 32)
SIZES = {"S": (4, 64), "M": (8, 128), "P": (32, 512)}  # steps on a level, and width

Model = Any  # a flow with an inverse


class Net(nn.Sequential):
    """Layers in a row; nflows hands every net a context too."""

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        return super().forward(x)


def net(inputs: int, outputs: int, width: int) -> Net:
    """Build the coupling net that is given to every package that takes one; its output is zero."""
    last = nn.Conv2d(width, outputs, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    first, second = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 1)
    return Net(first, nn.ReLU(), second, nn.ReLU(), last)


class MultiScale(nn.Module):
    """Squeezes and splits around the steps of a package, which are made for numbers of channels."""

    def __init__(
        self,
        make: Callable[[int], nn.Module],
        forward: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]],
        inverse: Callable[[nn.Module, Tensor], Tensor],
        steps: int,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        self.levels = nn.ModuleList()
        self.shapes = []
        self.one_forward, self.one_inverse = forward, inverse
        channels, side, _ = shape
        for level in range(1, LEVELS + 1):
            channels, side = 4 * channels, side // 2
            self.levels.append(nn.ModuleList(make(channels) for _ in range(steps)))
            channels //= 2 if level < LEVELS else 1
            self.shapes.append((channels, side, side))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det, latents = x.new_zeros(len(x)), []
        for number, level in enumerate(self.levels, 1):
            x = F.pixel_unshuffle(x, 2)
            for step in level:
                x, ld = self.one_forward(step, x)
                log_det = log_det + ld
            if number < LEVELS:
                x, latent = x.chunk(2, 1)
                latents.append(latent)
        return torch.cat([z.flatten(1) for z in (x, *reversed(latents))], 1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        sizes = [c * h * w for c, h, w in reversed(self.shapes)]
        parts = [
            part.reshape(-1, *shape)
            for part, shape in zip(z.split(sizes, 1), reversed(self.shapes), strict=True)
        ]
        x = parts.pop(0)
        for number, level in reversed(list(enumerate(self.levels, 1))):
            if number < LEVELS:
                x = torch.cat([x, parts.pop(0)], 1)
            for step in reversed(level):
                x = self.one_inverse(step, x)
            x = F.pixel_shuffle(x, 2)
        return x


def ours(steps: int, width: int, shape: tuple[int, int, int] = SHAPE) -> Model:
    return Glow(shape, LEVELS, steps, width)


def normflows(steps: int, width: int, shape: tuple[int, int, int] = SHAPE) -> Model:
    """Build normflows' GlowBlock, which samples forward and scores by its inverse."""
    from normflows.flows import GlowBlock

    return MultiScale(
        lambda channels: GlowBlock(channels, width, scale_map="exp"),
        lambda step, x: step.inverse(x),
        lambda step, z: step(z)[0],
        steps,
        shape,
    )


def freia(steps: int, width: int, shape: tuple[int, int, int] = SHAPE) -> Model:
    """Build FrEIA's AllInOneBlock, whose mixing is a fixed permutation."""
    from FrEIA.modules import AllInOneBlock

    def make(channels: int) -> nn.Module:
        side = shape[1] // 2 * 4 * shape[0] // channels
        return AllInOneBlock(
            [(channels, side, side)], subnet_constructor=lambda c, o: net(c, o, width)
        )

    def forward(step: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        (z,), log_det = step([x])
        return z, log_det

    return MultiScale(make, forward, lambda step, z: step([z], rev=True)[0][0], steps, shape)


def nflows(steps: int, width: int, shape: tuple[int, int, int] = SHAPE) -> Model:
    """Build a step from the transforms of nflows."""
    from nflows import transforms

    def make(channels: int) -> nn.Module:
        mask = [0] * (channels // 2) + [1] * (channels // 2)
        coupling = transforms.AffineCouplingTransform(
            mask, lambda inputs, out: net(inputs, out, width)
        )
        return transforms.CompositeTransform(
            [transforms.ActNorm(channels), transforms.OneByOneConvolution(channels), coupling]
        )

    return MultiScale(
        make, lambda step, x: step(x), lambda step, z: step.inverse(z)[0], steps, shape
    )


PEERS: dict[str, Callable[..., Model]] = {"normflows": normflows, "FrEIA": freia, "nflows": nflows}
