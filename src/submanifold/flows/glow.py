"""Glow (Kingma & Dhariwal 2018) as one bijection from images to flat, standard normal latents."""

import math
from collections.abc import Iterable, Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows import fast
from submanifold.flows.bijection import Compose, Flow, full_precision
from submanifold.flows.coupling import AffineCoupling, starting_at_zero
from submanifold.flows.linear import Linear, inverse_mixing, mixing
from submanifold.flows.reshape import Split, Squeeze


class Glow(Flow):
    """The multi-scale flow: on each level a squeeze, ``steps`` flow steps, and a split.

    Latents come out coarsest first, so that the first d of them are the smoothest part of the image
    (method.md 3.6).

    Args:
        shape: (channels, height, width) of an image; height and width divisible by 2^levels.
        levels: Number of levels.
        steps: Flow steps on each level, or a number for each of them, the finest first.
        width: Channels of the hidden layers of a coupling net.
        whiten: Whether the first step of each level starts by whitening the pixels of a squeeze,
            and not by a random rotation of them as the paper's.

    Raises:
        UserError: The image cannot be squeezed that often, or steps are given for more or fewer
            levels.

    Example:
        >>> flow = Glow((3, 8, 8), levels=2, steps=1, width=4)
        >>> z, log_det = flow(torch.rand(5, 3, 8, 8) - 0.5)
        >>> z.shape, log_det.shape, flow.inverse(z).shape
        (torch.Size([5, 192]), torch.Size([5]), torch.Size([5, 3, 8, 8]))
    """

    axes = (3,)

    def __init__(
        self,
        shape: Sequence[int],
        levels: PositiveInt = 3,
        steps: PositiveInt | list[PositiveInt] = 32,
        width: PositiveInt = 512,
        whiten: bool = True,
    ):
        super().__init__()
        self.event_shape = tuple(shape)
        self.config = {"shape": list(shape), "levels": levels, "steps": steps, "width": width,
                       "whiten": whiten}  # fmt: skip
        channels, height, size = shape
        if height % 2**levels or size % 2**levels:
            raise UserError(
                f"levels={levels} halves the image {levels} times, but {height}x{size} pixels are "
                f"not divisible by {2**levels}. Take fewer levels, or images of another size."
            )
        counts = [steps] * levels if isinstance(steps, int) else steps
        if len(counts) != levels:
            raise UserError(
                f"steps={steps} are for {len(counts)} levels, but levels={levels}. Give one number "
                "for all, or one for each."
            )
        blocks: list[Compose] = []
        splits: list[Split] = []
        self.latent_shapes: list[tuple[int, int, int]] = []
        for level, count in enumerate(counts, 1):
            channels, height, size = 4 * channels, height // 2, size // 2
            first = [whiten] + [False] * (count - 1)
            blocks.append(Level(step(channels, width, each) for each in first))
            if level < levels:
                splits.append(Split(channels))
                channels //= 2
            self.latent_shapes.append((channels, height, size))
        self.levels: Sequence[Compose] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.splits: Sequence[Split] = nn.ModuleList(splits)  # type: ignore[assignment]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (batch, c, h, w) to latents (batch, c h w), coarsest first."""
        x = x.contiguous(memory_format=torch.channels_last)
        log_det, latents = x.new_zeros(len(x)), []
        for level, split in zip(self.levels, [*self.splits, None], strict=True):
            x, ld = level(x)
            log_det = log_det + ld
            if split is not None:
                x, latent, ld = split(x)
                log_det = log_det + ld
                latents.append(latent)
        return torch.cat([z.flatten(1) for z in (x, *reversed(latents))], 1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents (batch, c h w) back to images."""
        shapes = self.latent_shapes[::-1]
        x, *latents = (
            part.view(-1, *shape).contiguous(memory_format=torch.channels_last)
            for part, shape in zip(z.split([*map(math.prod, shapes)], 1), shapes, strict=True)
        )
        x = self.levels[-1].inverse(x)
        for level, split, latent in zip(
            reversed(self.levels[:-1]), reversed(self.splits), latents, strict=True
        ):
            x = level.inverse(split.inverse(x, latent))
        return x


class Level(Compose):
    """A squeeze and the steps of a level, which are taken all together where that is faster."""

    def __init__(self, steps: Iterable[Compose]):
        super().__init__([Squeeze(), *steps])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squeeze, and apply the steps."""
        linears, couplings = self._parts()
        if not _all_at_once(x, linears, couplings):
            return super().forward(x)
        x, _ = self.bijections[0](x)
        with full_precision(x):
            matrices, shifts, log_dets = mixing(linears)
        nets = [coupling.net for coupling in couplings]
        z, log_det = fast.steps(x, nets, False, couplings[0].recompute, matrices, shifts)
        return z, log_det + log_dets.sum() * x.shape[2:].numel()

    def inverse(self, z: Tensor) -> Tensor:
        """Undo the steps, and the squeeze."""
        linears, couplings = self._parts()
        if not _all_at_once(z, linears, couplings):
            return super().inverse(z)
        with full_precision(z):
            matrices, shifts = inverse_mixing(linears[::-1])
        nets = [coupling.net for coupling in reversed(couplings)]
        x, _ = fast.steps(z, nets, True, couplings[0].recompute, matrices, shifts)
        return self.bijections[0].inverse(x)

    def _parts(self) -> tuple[Sequence[Linear], Sequence[AffineCoupling]]:
        linears, couplings = zip(*(each.bijections for each in self.bijections[1:]), strict=True)
        return linears, couplings


def _all_at_once(x: Tensor, linears: Sequence[Linear], couplings: Sequence[AffineCoupling]) -> bool:
    """Whether nothing asks for the steps one by one: no fit to data, and no hook."""
    hooked = (each._forward_hooks or each._forward_pre_hooks for each in (*linears, *couplings))
    if any(linear.norm.pending for linear in linears) or any(hooked):
        return False
    return fast.applies_to_steps(x, [coupling.net for coupling in couplings])


def step(channels: int, width: int, whiten: bool = False) -> Compose:
    """Build one step of Glow: actnorm, invertible 1x1 convolution, affine coupling (figure 2a)."""
    return Compose([Linear(channels, whiten), coupling(channels, width)])


def coupling(channels: int, width: int) -> AffineCoupling:
    """Build Glow's coupling, whose net has two hidden layers."""
    net = starting_at_zero(
        nn.Conv2d(channels // 2, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    )
    return AffineCoupling(net)
