"""A plain autoencoder in a flow's place: a manifold, and a left inverse as far as it is learned."""

import math
from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows.bijection import Injection, full_precision
from submanifold.flows.coupling import starting_at_zero
from submanifold.flows.injective import InjectiveLinear
from submanifold.flows.jet import cosines
from submanifold.flows.reshape import channels_to_space

LEAST_SIDE = 4


class Autoencoder(Injection):
    r"""Two nets, each beside a linear map.

    .. math:: e(x) = A^+ (Tx - b) + n_e(x), \qquad g(u) = T^T (A u + b) + n_d(u)

    with an injective matrix A, its pseudoinverse, and, for images, the orthonormal cosine transform
    T. Both nets start at zero, so that a fresh one is a linear projection, and, set from data, that
    onto their principal components (Bourlard & Kamp 1988: without a hidden layer none is better).
    That e(g(u)) = u holds as far as training makes it hold, and best near the data.

    The nets of images halve the sides by strided convolutions and double them by pixel shuffles, as
    long as they are even and above 4, with twice the channels each time; those of vectors are
    perceptrons with two hidden layers. All is smooth, as the volume of the manifold needs it.

    Args:
        event_shape: Of an image, with even height and width, or of a vector.
        dim: d.
        width: Channels at the finest of an image's convolutions, or hidden units of a vector's.

    Raises:
        UserError: The image cannot be halved.

    Example:
        >>> flow = Autoencoder((3, 8, 8), 5, width=4)
        >>> u, log_det = flow(torch.rand(2, 3, 8, 8) - 0.5)
        >>> u.shape, log_det, flow.inverse(u).shape
        (torch.Size([2, 5]), tensor([nan, nan]), torch.Size([2, 3, 8, 8]))
    """

    axes = (1, 3)
    has_volume = False

    def __init__(self, event_shape: Sequence[int], dim: int, width: PositiveInt = 64):
        super().__init__()
        self.event_shape, self.dim = tuple(event_shape), dim
        self.config = {"event_shape": list(event_shape), "dim": dim, "width": width}
        self.linear = InjectiveLinear(math.prod(self.event_shape), dim, whiten=True)
        build = perceptrons if len(self.event_shape) == 1 else convolutions
        self.encoder, self.decoder = build(self.event_shape, dim, width)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map events (batch, ...) to u (batch, d); the log-determinant is not a number."""
        u = self.linear(spectrum(x).flatten(1)) + self.encoder(x).to(x.dtype)
        return u, x.new_full((len(x),), torch.nan)

    def inverse(self, u: Tensor) -> Tensor:
        """Map u (batch, d) to events on the manifold."""
        x = self.linear.inverse(u).unflatten(1, self.event_shape)
        return spectrum(x, inverse=True) + self.decoder(u).to(u.dtype)


def perceptrons(
    shape: tuple[int, ...], dim: int, width: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """Build an encoder and a decoder of vectors."""

    def build(inputs: int, outputs: int) -> nn.Sequential:
        return starting_at_zero(
            nn.Linear(inputs, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, outputs),
        )

    (size,) = shape
    return build(size, dim), build(dim, size)


def convolutions(
    shape: tuple[int, ...], dim: int, width: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """Build an encoder and a decoder of images.

    Raises:
        UserError: The image cannot be halved.
    """
    channels, height, side = shape
    if height % 2 or side % 2:
        raise UserError(
            f"type=autoencoder halves the sides of an image, but {height}x{side} pixels are not "
            "even. Take images of another size."
        )
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    inside = width
    while not down or (height % 2 == side % 2 == 0 and min(height, side) > LEAST_SIDE):
        height, side = height // 2, side // 2
        down += [nn.Conv2d(channels, inside, 4, stride=2, padding=1), nn.SiLU()]
        up = [nn.SiLU(), nn.Conv2d(inside, 4 * channels, 3, padding=1), ChannelsToSpace(), *up]
        channels, inside = inside, 2 * inside
    code = channels, height, side
    *up, last, shuffle = up
    encoder = starting_at_zero(*down, nn.Flatten(), nn.Linear(math.prod(code), dim))
    decoder = starting_at_zero(nn.Linear(dim, math.prod(code)), nn.Unflatten(1, code), *up, last)
    return encoder, decoder.append(shuffle)


class ChannelsToSpace(nn.Module):
    """Four channels to 2x2 pixels."""

    def forward(self, z: Tensor) -> Tensor:
        """Map (batch, 4c, h, w) to (batch, c, 2h, 2w)."""
        return channels_to_space(z, 2)


def spectrum(x: Tensor, inverse: bool = False) -> Tensor:
    """Take images to their orthonormal cosine transform, along the colours too; leave vectors.

    Few images say how large each coefficient is, and little of how pixels go together.
    """
    if x.ndim == 2:
        return x
    with full_precision(x):
        for size in x.shape[1:]:  # each product moves the axis that it is along to the end
            x = torch.tensordot(x, cosines(size, x), ([1], [0 if inverse else 1]))
        return x
