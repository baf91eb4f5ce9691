"""Jet (Kolesnikov et al. 2024): affine couplings whose nets are small vision transformers."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows.bijection import Bijection, Compose, Flow, full_precision
from submanifold.flows.coupling import Coupling
from submanifold.flows.reshape import channels_to_space, space_to_channels


class Jet(Flow):
    """Couplings on the patches of an image, all at one scale.

    No actnorm and no 1x1 convolution; both directions take one pass. Of five couplings four split
    the channels of every patch by a random half, each second one by the other half of the one
    before, and one splits the patches themselves: by a checkerboard, by columns or by rows
    (Kolesnikov et al. 2024, arXiv 2412.15129; the defaults are their smaller model's).

    Unlike there, channels are not a patch's pixels but its :class:`Spectrum`, so that the first d
    latents are the smoothest part of the image (method.md 3.6); a fresh one is that alone.

    Args:
        shape: (channels, height, width) of an image; height and width divisible by ``patch``.
        patch: Side of a patch, in pixels.
        couplings: Number of couplings.
        blocks: Transformer blocks of a coupling net.
        width: Numbers that a coupling net has for each patch.
        heads: Heads of its attention; ``width`` is divisible by it.

    Raises:
        UserError: The image cannot be cut into such patches, or the width into such heads.

    Example:
        >>> flow = Jet((3, 8, 8), patch=4, couplings=2, blocks=1, width=8, heads=2)
        >>> z, log_det = flow(torch.rand(5, 3, 8, 8) - 0.5)
        >>> z.shape, log_det.shape, flow.inverse(z).shape
        (torch.Size([5, 192]), torch.Size([5]), torch.Size([5, 3, 8, 8]))
    """

    axes = (3,)

    def __init__(
        self,
        shape: Sequence[int],
        patch: PositiveInt = 4,
        couplings: PositiveInt = 32,
        blocks: PositiveInt = 2,
        width: PositiveInt = 512,
        heads: PositiveInt = 8,
    ):
        super().__init__()
        self.event_shape = tuple(shape)
        self.config = {
            "shape": list(shape), "patch": patch, "couplings": couplings, "blocks": blocks,
            "width": width, "heads": heads,
        }  # fmt: skip
        channels, height, size = shape
        if height % patch or size % patch:
            raise UserError(
                f"patch={patch} does not divide {height}x{size} pixels. Take a patch that divides "
                "both sides, or images of another size."
            )
        if width % heads:
            raise UserError(
                f"heads={heads} does not divide width={width}. Take a width that is a multiple of "
                "the heads."
            )
        self.grid = channels * patch**2, height // patch, size // patch
        self.layers = Compose(
            [
                Spectrum(channels, patch),
                *(
                    PatchCoupling(mask, VisionTransformer(self.grid, blocks, width, heads))
                    for mask in masks(self.grid, couplings)
                ),
            ]
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (batch, c, h, w) to latents (batch, c h w), smoothest first."""
        z, log_det = self.layers(x)
        return z.flatten(1), log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents (batch, c h w) back to images."""
        z = z.unflatten(1, self.grid).contiguous(memory_format=torch.channels_last)
        return self.layers.inverse(z)


def masks(grid: tuple[int, int, int], count: int) -> Iterator[Tensor]:
    """Zeros and ones of shape (channels, rows, columns), those of each coupling in turn."""
    channels, rows, columns = (torch.arange(size) for size in grid)
    across = [rows[:, None] + columns, columns.expand(len(rows), -1), rows[:, None]]
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        turn, kind = divmod(index, 5)
        if kind == 4:
            ones = (across[turn // 2 % 3] + turn) % 2
        else:
            if kind % 2 == 0:
                half = torch.randperm(len(channels), generator=generator) % 2
            ones = ((half + kind) % 2)[:, None, None]
        yield ones.float().expand(grid).clone()


class PatchCoupling(Coupling):
    r"""The numbers under the mask scale and shift the others.

    .. math:: z = m \odot x + (1 - m) \odot (x\, e^{s(m \odot x)} + t(m \odot x))

    Args:
        mask: (channels, rows, columns) of zeros and ones; ones pass unchanged.
        net: Maps (batch, channels, rows, columns) to twice the channels: raw log-scales, shifts.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, net: nn.Module):
        super().__init__(net)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform the unmasked numbers of (batch, channels, rows, columns)."""
        log_scale, shift = self._free_part(x)
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Restore the unmasked numbers."""
        log_scale, shift = self._free_part(z)
        return (z - shift) * (-log_scale).exp()

    def _free_part(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.scale_and_shift(x * self.mask)
        free = 1 - self.mask
        return log_scale * free, shift * free


class VisionTransformer(nn.Module):
    """From patches to twice as many numbers for each, which are zero until it has learned.

    A patch is embedded together with the eight around it, by a convolution, so that attention need
    not find first who the neighbours are (Xiao et al. 2021, "Early convolutions").

    Args:
        grid: (channels, rows, columns) of the patches.
        blocks: Number of blocks, each an attention and a perceptron of one hidden layer.
        width: Numbers for each patch inside.
        heads: Heads of each attention.
    """

    def __init__(self, grid: tuple[int, int, int], blocks: int, width: int, heads: int):
        super().__init__()
        channels, *self.sides = grid
        self.embed = nn.Conv2d(channels, width, 3, padding=1)
        self.position = nn.Parameter(torch.randn(math.prod(self.sides), width) / width**0.5)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, rows, columns) to (batch, 2 channels, rows, columns)."""
        x = self.embed(x).flatten(2).mT
        x = self.out(self.norm(self.blocks(x + self.position.to(x.dtype))))
        return x.mT.unflatten(2, self.sides)


class Block(nn.Module):
    """Attention over all patches, then a perceptron for each, both added to what comes in."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, patches, width) to the same shape."""
        x = x + self.attention(x)
        return x + self.perceptron(x)


class Attention(nn.Module):
    """Self-attention of several heads, (batch, patches, width) to the same shape."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Let every patch take from all patches."""
        each = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1))
        return self.out(attend(*each.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r"""Softmax attention, :math:`\mathrm{softmax}(q k^T / \sqrt{n})\, v`, of (..., tokens, n)."""
    # torch's own has no forward derivative, and on a CPU it is several times as slow in bfloat16
    if q.device.type == "cpu" or torch._C._functorch.is_functorch_wrapped_tensor(q):
        return torch.softmax(q @ (k / k.shape[-1] ** 0.5).mT, -1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Spectrum(Bijection):
    r"""Images to the cosine coefficients of their patches, lowest frequency first.

    The orthonormal transform of each patch goes along its colours as well, so that the first of
    three is luminance. The coefficient of colour c at the frequencies i and j of a patch of side p
    is multiplied by

    .. math:: \frac{10}{p}\, (1 + c) \left(\tfrac14 + \sqrt{i^2 + j^2}\right),

    which in photographs brings most to a standard deviation near 1, and sorted by it.

    Args:
        channels: Colours of an image.
        patch: Side of a patch, in pixels.
    """

    order: Tensor
    scale: Tensor

    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.sizes = (channels, patch, patch)
        colour, row, column = torch.meshgrid(*map(torch.arange, self.sizes), indexing="ij")
        scale = 10 / patch * (1 + colour) * (0.25 + torch.hypot(row.float(), column.float()))
        scale, order = scale.flatten().sort(stable=True)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, c, h, w) to (batch, c p^2, h / p, w / p), the channels sorted."""
        z = self._turn(space_to_channels(x, self.sizes[1]), 1)[:, self.order]
        z = z.contiguous(memory_format=torch.channels_last) * self.scale[:, None, None]
        return z, (self.scale.log().sum() * z.shape[2:].numel()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Put the patches together again."""
        coefficients = (z / self.scale[:, None, None])[:, self.order.argsort()]
        return channels_to_space(self._turn(coefficients, 0), self.sizes[1])

    def _turn(self, x: Tensor, axis: int) -> Tensor:
        """Multiply the channels by the transform, or for axis 0 by its inverse."""
        x = x.unflatten(1, self.sizes)
        with full_precision(x):
            for size in self.sizes:  # each product moves the axis that it is along to the end
                x = torch.tensordot(x, cosines(size, x), ([1], [axis]))
        return x.flatten(3).movedim(3, 1)


def cosines(size: int, like: Tensor) -> Tensor:
    """Orthonormal cosine transform (DCT-II) of ``size`` numbers, a row for each frequency."""
    # made when it is needed, in the precision it is needed in
    index = torch.arange(size, dtype=torch.float64, device=like.device)
    matrix = (math.pi / size * torch.outer(index, index + 0.5)).cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like.dtype)
