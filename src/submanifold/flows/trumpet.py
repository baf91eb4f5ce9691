"""Trumpets (Kothari et al. 2021): injective flows of bijective steps and injective linear maps."""

import math
from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection, Compose, Injection
from submanifold.flows.glow import Level, affine_coupling
from submanifold.flows.injective import InjectiveLinear
from submanifold.flows.linear import Linear
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.reshape import check_divisible

MIN_EXPANSION = 2  # coordinates that the last linear map receives, per latent


class Trumpet(Injection):
    """Steps of Glow and injective 1x1 convolutions, which halve the channels.

    Each level squeezes an image, applies steps and halves the channels, as long as at least twice
    ``dim`` coordinates remain; the last linear map reduces them to ``dim`` (Kothari,
    Khorashadizadeh, de Hoop & Dokmanić 2021, arXiv 2102.10461). A vector passes through steps of
    RealNVP and one linear map. The left inverse is exact, but the determinant of J^T J has no
    closed form.

    Data-dependent initialization makes it a linear map that keeps the principal directions of each
    level.

    Args:
        event_shape: Shape of an image with even height and width, or of a vector.
        dim: d.
        steps: Steps of each level, or of a vector; each is a linear map and a coupling.
        width: Hidden channels of the coupling nets.

    Raises:
        UserError: The height or the width of the image is odd.

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
        build = _vector_layers if len(self.event_shape) == 1 else _image_layers
        layers, self.inner_shape = build(self.event_shape, dim, steps, width)
        self.layers: Sequence[Bijection | InjectiveLinear]
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        self.last = InjectiveLinear(math.prod(self.inner_shape), dim, whiten=True)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map events (batch, ...) to u (batch, d); the log-determinant is NaN."""
        h = x
        for layer in self.layers:
            h = layer(h)[0] if isinstance(layer, Bijection) else layer(h)
        return self.last(h.flatten(1)), x.new_full((len(x),), torch.nan)

    def inverse(self, u: Tensor) -> Tensor:
        """Map u (batch, d) to events on the manifold."""
        x = self.last.inverse(u).unflatten(1, self.inner_shape)
        for layer in reversed(self.layers):
            x = layer.inverse(x)
        return x


class Isotropic(Linear):
    """:class:`Linear` that starts as a permutation of the channels with one scale for all.

    It keeps ratios of distances, so that directions of small variance remain unimportant for the
    reconstruction.

    Args:
        channels: Number of channels, the second axis of x.
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


Layers = list[Bijection | InjectiveLinear]


def _vector_layers(
    shape: tuple[int, ...], dim: int, steps: int, width: int
) -> tuple[Layers, tuple[int, ...]]:
    (size,) = shape
    couplings = RealNVP(size, steps, width).bijections
    return [Compose(Compose([Isotropic(size), each]) for each in couplings)], shape


def _image_layers(
    shape: tuple[int, ...], dim: int, steps: int, width: int
) -> tuple[Layers, tuple[int, ...]]:
    check_divisible(shape, 2, "type=trumpet")
    channels, rows, columns = shape
    layers: Layers = []
    narrows = True
    while narrows and rows % 2 == columns % 2 == 0:
        channels, rows, columns = 4 * channels, rows // 2, columns // 2
        layers.append(
            Level(
                Compose([Isotropic(channels), affine_coupling(channels, width)])
                for _ in range(steps)
            )
        )
        narrows = channels * rows * columns >= 2 * MIN_EXPANSION * dim
        if narrows:
            layers.append(InjectiveLinear(channels, channels // 2))
            channels //= 2
    return layers, (channels, rows, columns)
