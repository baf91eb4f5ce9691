"""Glow (Kingma & Dhariwal 2018) on images."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import unexpected
from submanifold.flows import fast
from submanifold.flows.bijection import Compose, full_precision
from submanifold.flows.black_level import BlackLevel
from submanifold.flows.conditional import ConditionalLatents
from submanifold.flows.context import Context
from submanifold.flows.coupling import AffineCoupling, zero_initialized
from submanifold.flows.linear import Linear, stack_inverses, stack_maps
from submanifold.flows.reshape import Split, Squeeze, check_divisible


class Glow(ConditionalLatents):
    """Multi-scale flow: each level consists of a squeeze, flow steps and a split.

    The latents are ordered from the coarsest level to the finest, so that the first d of them
    represent the smooth part of the image (:ref:`theory-3-6`).

    Args:
        shape: (channels, height, width) of an image; height and width divisible by 2^levels.
        levels: Number of levels.
        steps: Flow steps of each level, or a list with one number per level, the finest first.
        width: Hidden channels of the coupling nets.
        whiten: Whether data-dependent initialization makes the first linear map of each level
            whiten its input; otherwise it stays a random rotation, as in the paper.
        black_spread: Scale, in grey levels, that the noise of black pixels gets, for images that
            are mostly black (:class:`.BlackLevel`); None leaves it as it is.

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
        levels: Annotated[int, Field(gt=0, le=32)] = 3,
        steps: PositiveInt | list[PositiveInt] = 32,
        width: PositiveInt = 512,
        whiten: bool = True,
        black_spread: Annotated[float, Field(gt=0)] | None = None,
    ):
        super().__init__()
        self.black_level = None if black_spread is None else BlackLevel(black_spread)
        check_divisible(shape, 2**levels, f"levels={levels}")
        counts = [steps] * levels if isinstance(steps, int) else steps
        if len(counts) != levels:
            fix = f"Change steps, or set levels to {len(counts)}"
            raise unexpected("steps", f"one number or {levels}, one per level", steps, fix)
        self.event_shape = tuple(shape)
        channels, rows, columns = shape
        blocks: list[Compose] = []
        splits: list[Split] = []
        self.latent_shapes: list[tuple[int, int, int]] = []
        for level, count in enumerate(counts, 1):
            channels, rows, columns = 4 * channels, rows // 2, columns // 2
            linears = (Linear(channels, whiten and step == 0) for step in range(count))
            pairs = ([linear, affine_coupling(channels, width)] for linear in linears)
            blocks.append(Level(map(Compose, pairs)))
            if level < levels:
                splits.append(Split(channels))
                channels //= 2
            self.latent_shapes.append((channels, rows, columns))
        self.levels: Sequence[Compose] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.splits: Sequence[Split] = nn.ModuleList(splits)  # type: ignore[assignment]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        log_det, latents = x.new_zeros(x.shape[0]), []
        if self.black_level is not None:
            x, log_det = self.black_level(x)
        for level, split in zip(self.levels, [*self.splits, None], strict=True):
            x, ld = level(x, context)
            log_det = log_det + ld
            if split is not None:
                x, latent, ld = split(x)
                log_det = log_det + ld
                latents.append(latent)
        return torch.cat([z.flatten(1) for z in (x, *reversed(latents))], 1), log_det

    def _inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        shapes = self.latent_shapes[::-1]
        x, *latents = (
            part.view(-1, *shape).contiguous(memory_format=torch.channels_last)
            for part, shape in zip(z.split([*map(math.prod, shapes)], 1), shapes, strict=True)
        )
        x = self.levels[-1].inverse(x, context)
        for level, split, latent in zip(
            reversed(self.levels[:-1]), reversed(self.splits), latents, strict=True
        ):
            x = level.inverse(split.inverse(x, latent), context)
        return x if self.black_level is None else self.black_level.inverse(x)


class Level(Compose):
    """A squeeze and the steps of a level, which :mod:`.fast` computes at once where it can."""

    def __init__(self, steps: Iterable[Compose]):
        super().__init__([Squeeze(), *steps])

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.bijections[0](x)
        if fused := self._fused(x, stack_maps):
            z, log_det, log_dets = fused
            return z, log_det + log_dets.sum() * x.shape[2:].numel()
        for step in self.bijections[1:]:
            x, ld = step(x, context)
            log_det = log_det + ld
        return x, log_det

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        if fused := self._fused(z, stack_inverses, inverse=True):
            return self.bijections[0].inverse(fused[0])
        return super().inverse(z, context)

    def _fused(self, x: Tensor, stack: Callable[..., Any], inverse: bool = False) -> Any:
        """Compute all steps, unless a layer has to be called, for its initialization or hooks."""
        steps = self.bijections[:0:-1] if inverse else self.bijections[1:]
        linears, couplings = zip(*(step.bijections for step in steps), strict=True)
        nets = [coupling.net for coupling in couplings]
        hooked = map(fast.is_hooked, (*steps, *linears, *couplings))
        is_called = any(linear.uninitialized for linear in linears) or any(hooked)
        if is_called or not fast.supports(x, nets):
            return None
        with full_precision(x):
            matrices, shifts, log_dets = stack(linears)
        return *fast.flow_steps(x, nets, inverse, matrices, shifts), log_dets


def affine_coupling(channels: int, width: int) -> AffineCoupling:
    """Build the affine coupling of Glow, whose net has two hidden layers."""
    first, second = nn.Conv2d(channels // 2, width, 3, padding=1), nn.Conv2d(width, width, 1)
    last = nn.Conv2d(width, channels, 3, padding=1)
    return AffineCoupling(zero_initialized(first, nn.ReLU(), second, nn.ReLU(), last))
