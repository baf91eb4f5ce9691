"""Jet (Kolesnikov et al. 2024): affine couplings whose nets are vision transformers."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import unexpected
from submanifold.flows.bijection import Bijection, Compose
from submanifold.flows.conditional import ConditionalLatents
from submanifold.flows.coupling import Coupling, zero_initialized
from submanifold.flows.orthogonal import dct
from submanifold.flows.reshape import channels_to_space, check_divisible, space_to_channels


class Jet(ConditionalLatents):
    """Couplings of the patches of an image, all at one resolution.

    Of five couplings, four split the channels of every patch into random halves, in complementary
    pairs; the fifth splits the patches by a checkerboard, by columns or by rows (Kolesnikov et al.
    2024, arXiv 2412.15129, with the defaults of their smaller model). Unlike theirs, channels are
    the cosine coefficients of a patch (:class:`PatchDCT`), so that the first d latents represent
    the smooth part of the image (:ref:`theory-3-6`).

    Args:
        shape: (channels, height, width) of an image; height and width divisible by ``patch``.
        patch: Side of a patch, in pixels.
        couplings: Number of couplings.
        blocks: Transformer blocks of a coupling net.
        width: Embedding dimension of a coupling net.
        heads: Attention heads; they divide ``width``.

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
        check_divisible(shape, patch, f"patch={patch}")
        if width % heads:
            raise unexpected("heads", f"a divisor of width={width}", heads, "Change one of them")
        self.event_shape = tuple(shape)
        channels, rows, columns = shape
        self.grid = channels * patch**2, rows // patch, columns // patch
        masks = patch_masks(self.grid, couplings)
        nets = (VisionTransformer(self.grid, blocks, width, heads) for _ in range(couplings))
        self.layers = Compose([PatchDCT(channels, patch), *map(PatchCoupling, masks, nets)])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.layers(x)
        return z.flatten(1), log_det

    def _inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        z = z.unflatten(1, self.grid).contiguous(memory_format=torch.channels_last)
        return self.layers.inverse(z)


def patch_masks(grid: tuple[int, int, int], count: int) -> Iterator[Tensor]:
    """Yield the masks of the couplings, zeros and ones of shape (channels, rows, columns)."""
    channels, rows, columns = (torch.arange(size) for size in grid)
    spatial = [rows[:, None] + columns, columns.expand(len(rows), -1), rows[:, None]]
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        group, kind = divmod(index, 5)
        if kind == 4:
            ones = (spatial[group // 2 % 3] + group) % 2
        else:
            if kind % 2 == 0:
                half = torch.randperm(len(channels), generator=generator) % 2
            ones = ((half + kind) % 2)[:, None, None]
        yield ones.float().expand(grid).clone()


class PatchCoupling(Coupling):
    """Coupling of patches (channels, rows, columns): values under a mask of ones pass unchanged."""

    def __init__(self, mask: Tensor, net: nn.Module):
        super().__init__(net)
        self.mask = nn.Buffer(mask, persistent=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.mask, x

    def join(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return b

    def scale_and_shift(self, a: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = super().scale_and_shift(a, context)
        free = 1 - self.mask
        return log_scale * free, shift * free


class VisionTransformer(nn.Module):
    """Vision transformer from patches (channels, rows, columns) to twice the channels.

    A 3x3 convolution embeds each patch with its neighbours (Xiao et al. 2021, "Early convolutions
    help transformers see better").
    """

    def __init__(self, grid: tuple[int, int, int], blocks: int, width: int, heads: int):
        super().__init__()
        channels, *self.sides = grid
        self.embed = nn.Conv2d(channels, width, 3, padding=1)
        self.position = nn.Parameter(torch.randn(math.prod(self.sides), width) / width**0.5)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.out = zero_initialized(nn.Linear(width, 2 * channels))[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, rows, columns) to (batch, 2 channels, rows, columns)."""
        x = self.embed(x).flatten(2).mT
        x = self.out(self.norm(self.blocks(x + self.position.to(x.dtype))))
        return x.mT.unflatten(2, self.sides)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and a perceptron, each with a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        hidden = nn.Linear(width, 4 * width), nn.GELU()
        self.perceptron = nn.Sequential(nn.LayerNorm(width), *hidden, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.perceptron(x)


class Attention(nn.Module):
    """Multi-head self-attention, (batch, patches, width) to the same shape."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1))
        return self.out(attend(*projected.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r"""Softmax attention, :math:`\mathrm{softmax}(q k^T / \sqrt{n})\, v`, of (..., tokens, n)."""
    # torch's has no forward-mode derivative, and is several times slower on a CPU in bfloat16
    if q.device.type == "cpu" or torch._C._functorch.is_functorch_wrapped_tensor(q):
        return torch.softmax(q @ (k / k.shape[-1] ** 0.5).mT, -1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class PatchDCT(Bijection):
    r"""Scaled cosine coefficients of the patches of an image, lowest frequencies first.

    The orthonormal transform includes the colours, whose first coefficient is the luminance. With p
    the side of a patch, coefficients of colour c and frequencies i and j are multiplied by

    .. math:: \frac{10}{p}\, (1 + c) \left(\tfrac14 + \sqrt{i^2 + j^2}\right),

    by which they are sorted; those of photographs have standard deviations near 1.
    """

    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.sizes = (channels, patch, patch)
        colour, row, column = torch.meshgrid(*map(torch.arange, self.sizes), indexing="ij")
        scale = 10 / patch * (1 + colour) * (0.25 + torch.hypot(row.float(), column.float()))
        scale, order = scale.flatten().sort(stable=True)
        self.order = nn.Buffer(order, persistent=False)
        self.scale = nn.Buffer(scale, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = self._transform(space_to_channels(x, self.sizes[1]))[:, self.order]
        z = z.contiguous(memory_format=torch.channels_last) * self.scale[:, None, None]
        return z, (self.scale.log().sum() * z.shape[2:].numel()).expand(x.shape[0])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        coefficients = (z / self.scale[:, None, None])[:, self.order.argsort()]
        return channels_to_space(self._transform(coefficients, inverse=True), self.sizes[1])

    def _transform(self, x: Tensor, inverse: bool = False) -> Tensor:
        return dct(x.unflatten(1, self.sizes), inverse).flatten(3).movedim(3, 1)
