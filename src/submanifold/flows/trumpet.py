"""Trumpets (Kothari et al. 2021): injective flows of bijective steps and widening linear maps."""

import math
from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows.bijection import Bijection, Compose, Injection
from submanifold.flows.glow import Level, coupling
from submanifold.flows.injective import InjectiveLinear
from submanifold.flows.linear import Linear
from submanifold.flows.realnvp import RealNVP

SPARE = 2


class Trumpet(Injection):
    """Steps of Glow between injective 1x1 convolutions, which double the channels of what they map.

    An image is squeezed, goes through some steps and loses half of its channels, and so on, level
    after level, as long as more than a small multiple of ``dim`` numbers are left; the last linear
    map takes these, all positions together, to ``dim`` (Kothari, Khorashadizadeh, de Hoop &
    Dokmanić 2021, arXiv 2102.10461). A vector goes through steps of RealNVP and one linear map. All
    parts have exact left inverses, so that a projection onto the manifold is one; but J^T J of the
    whole is no product of those of its parts, and its determinant has no closed form.

    Set from data it starts as a linear map that keeps the principal directions of each level.

    Args:
        event_shape: Of an image, with even height and width, or of a vector.
        dim: d.
        steps: Steps on each level, or of a vector; each mixes the channels and couples them.
        width: Channels of the hidden layers of a coupling net.

    Raises:
        UserError: The image cannot be squeezed.

    Example:
        >>> flow = Trumpet((3, 8, 8), 5, steps=1, width=4)
        >>> u, log_det = flow(torch.rand(2, 3, 8, 8) - 0.5)
        >>> u.shape, log_det, flow.inverse(u).shape
        (torch.Size([2, 5]), tensor([nan, nan]), torch.Size([2, 3, 8, 8]))
    """

    axes = (1, 3)
    has_volume = False

    def __init__(
        self,
        event_shape: Sequence[int],
        dim: int,
        steps: PositiveInt = 4,
        width: PositiveInt = 64,
    ):
        super().__init__()
        self.event_shape, self.dim = tuple(event_shape), dim
        self.config = {"event_shape": list(event_shape), "dim": dim, "steps": steps,
                       "width": width}  # fmt: skip
        parts: list[Bijection | InjectiveLinear] = []
        if len(self.event_shape) == 1:
            (size,) = self.event_shape
            couplings = RealNVP(size, steps, width).bijections
            parts.append(Compose(Compose([Isotropic(size), each]) for each in couplings))
            self.grid: tuple[int, ...] = self.event_shape
        else:
            channels, height, side = self.event_shape
            if height % 2 or side % 2:
                raise UserError(
                    f"type=trumpet halves the sides of an image, but {height}x{side} pixels are "
                    "not even. Take images of another size."
                )
            narrows = True
            while narrows and height % 2 == side % 2 == 0:
                channels, height, side = 4 * channels, height // 2, side // 2
                parts.append(level(channels, steps, width))
                narrows = channels * height * side >= 2 * SPARE * dim
                if narrows:
                    parts.append(InjectiveLinear(channels, channels // 2))
                    channels //= 2
            self.grid = channels, height, side
        self.parts: Sequence[Bijection | InjectiveLinear]
        self.parts = nn.ModuleList(parts)  # type: ignore[assignment]
        self.last = InjectiveLinear(math.prod(self.grid), dim, whiten=True)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map events (batch, ...) to u (batch, d); the log-determinant is not a number."""
        h = x
        for part in self.parts:
            h = part(h)[0] if isinstance(part, Bijection) else part(h)
        return self.last(h.flatten(1)), x.new_full((len(x),), torch.nan)

    def inverse(self, u: Tensor) -> Tensor:
        """Map u (batch, d) to events on the manifold."""
        x = self.last.inverse(u).unflatten(1, self.grid)
        for part in reversed(self.parts):
            x = part.inverse(x)
        return x


def level(channels: int, steps: int, width: int) -> Level:
    """Build a squeeze and the steps behind it, which act on so many channels."""
    return Level(Compose([Isotropic(channels), coupling(channels, width)]) for _ in range(steps))


class Isotropic(Linear):
    """Normalised and mixed channels, on one scale for all.

    It starts as a random order of the channels and keeps the ratios of distances, so that what has
    little variance behind it is also what matters little to the reconstruction.

    Args:
        channels: Number of channels, the second axis of x.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        order = torch.eye(channels)[torch.randperm(channels)]
        self.height = math.sqrt(channels)
        # entries larger than W's, because Adam would turn a large matrix around in a few steps:
        # no likelihood holds it back
        self.weight = nn.Parameter(self.height * order)

    @property
    def matrix(self) -> Tensor:
        """W."""
        return self.weight / self.height

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set the normalisation from a batch."""
        self.norm.fit(x)
        variance = (-2 * self.norm.log_scale).exp().mean()
        self.norm.log_scale.fill_(-0.5 * variance.log())
