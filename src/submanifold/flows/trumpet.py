"""Trumpets (Kothari et al. 2021): injective flows of bijective steps and injective linear maps."""

import math
from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection, Compose, Injection
from submanifold.flows.conditional import ConditionalLatents
from submanifold.flows.context import Context
from submanifold.flows.glow import Level, affine_coupling
from submanifold.flows.injective import InjectiveLinear
from submanifold.flows.linear import Linear
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.reshape import check_divisible

MIN_EXPANSION = 2  # coordinates that the last linear map receives, per latent


class Trumpet(ConditionalLatents, Injection):
    """Steps of Glow and injective 1x1 convolutions, which halve the channels.

    Each level squeezes an image, applies steps and halves the channels, as long as at least twice
    ``dim`` coordinates remain; the last linear map reduces them to ``dim`` (Kothari et al. 2021,
    arXiv 2102.10461). A vector passes through steps of RealNVP and one linear map. The left inverse
    is exact, but the determinant of J^T J has no closed form. All contexts have one manifold.

    Data-dependent initialization keeps the principal directions of the input of each linear map.

    Args:
        event_shape: Shape of an image with even height and width, or of a vector.
        dim: Dimension d of the manifold.
        steps: Steps of each level, or of a vector; each is a linear map and a coupling.
        width: Hidden channels of the coupling nets.

    Example:
        >>> flow = Trumpet((3, 8, 8), 5, steps=1, width=4)
        >>> u, log_det = flow(torch.rand(2, 3, 8, 8) - 0.5)
        >>> u.shape, log_det, flow.inverse(u).shape
        (torch.Size([2, 5]), tensor([nan, nan]), torch.Size([2, 3, 8, 8]))
    """

    axes = (1, 3)
    has_volume = False

    def __init__(
        self, event_shape: Sequence[int], dim: int, steps: PositiveInt = 4, width: PositiveInt = 64
    ):
        super().__init__()
        self.event_shape, self.dim = tuple(event_shape), dim
        layers: list[Bijection | InjectiveLinear] = []
        self.inner_shape = self.event_shape
        narrows = len(self.event_shape) == 3
        if narrows:
            check_divisible(event_shape, 2, "type=trumpet")
        else:
            (size,) = self.event_shape
            couplings = RealNVP(size, steps, width).bijections
            layers += [Compose([Isotropic(size), coupling]) for coupling in couplings]
        while narrows and all(side % 2 == 0 for side in self.inner_shape[1:]):
            channels, rows, columns = self.inner_shape
            channels, rows, columns = 4 * channels, rows // 2, columns // 2
            pairs = ((Isotropic(channels), affine_coupling(channels, width)) for _ in range(steps))
            layers.append(Level(map(Compose, pairs)))
            narrows = channels * rows * columns >= 2 * MIN_EXPANSION * dim
            if narrows:
                layers.append(InjectiveLinear(channels, channels // 2))
                channels //= 2
            self.inner_shape = channels, rows, columns
        self.layers: Sequence[Bijection | InjectiveLinear]
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        self.last = InjectiveLinear(math.prod(self.inner_shape), dim, whiten=True)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        h = x
        for layer in self.layers:
            h = layer(h)[0] if isinstance(layer, Bijection) else layer(h)
        return self.last(h.flatten(1)), x.new_full(x.shape[:1], torch.nan)

    def _inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        x = self.last.inverse(z).unflatten(1, self.inner_shape)
        for layer in reversed(self.layers):
            x = layer.inverse(x)
        return x


class Isotropic(Linear):
    """:class:`Linear` that starts as a permutation of the channels, with one scale for all.

    It keeps ratios of distances: directions of small variance stay unimportant.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        permutation = torch.eye(channels)[torch.randperm(channels)]
        # larger weights slow Adam down: no likelihood keeps the matrix invertible
        self.weight_scale = math.sqrt(channels)
        self.weight = nn.Parameter(self.weight_scale * permutation)

    @property
    def matrix(self) -> Tensor:
        """W, (channels, channels)."""
        return self.weight / self.weight_scale

    def initialize_from(self, x: Tensor) -> None:
        """Set the shift of each channel, and the scale from the mean of their variances."""
        self.norm(x)
        variance = (-2 * self.norm.log_scale).exp().mean()
        self.norm.log_scale.fill_(-0.5 * variance.log())
