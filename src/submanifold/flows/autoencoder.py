"""Autoencoders as injections: the encoder is a left inverse only as far as it is trained."""

import math
from collections.abc import Sequence

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.flows.bijection import Injection
from submanifold.flows.conditional import apply
from submanifold.flows.context import Context
from submanifold.flows.coupling import add_context, mlp, zero_initialized
from submanifold.flows.injective import InjectiveLinear
from submanifold.flows.orthogonal import dct
from submanifold.flows.reshape import channels_to_space, check_divisible

MIN_SIDE = 4


class Autoencoder(Injection):
    r"""Encoder and decoder nets, each added to a linear map.

    .. math:: e(x) = A^+ (Tx - b) + n_e(x), \qquad g(u) = T^T (A u + b) + n_d(u)

    A is an injective matrix, :math:`A^+` its pseudoinverse, and T the orthonormal cosine transform
    for images, the identity for vectors. The nets start at zero. Data-dependent initialization
    makes the linear part the best linear autoencoder, PCA (Bourlard & Kamp 1988).

    The nets of images halve the sides by strided convolutions, as long as they are even and above
    4, and double the channels; those of vectors have two hidden layers. Activations are smooth, as
    gradients of the volume require.

    Args:
        event_shape: Shape of an image with even height and width, or of a vector.
        dim: Dimension d of the manifold.
        width: Channels of the finest convolution, or hidden units for vectors.

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
        self.linear = InjectiveLinear(math.prod(self.event_shape), dim, whiten=True)
        if len(self.event_shape) == 1:
            (size,) = self.event_shape
            self.encoder = mlp(size, width, dim, nn.SiLU)
            self.decoder = mlp(dim, width, size, nn.SiLU)
        else:
            self.encoder, self.decoder = _convnets(self.event_shape, dim, width)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def add_context(self, size: int) -> None:
        for net in (self.encoder, self.decoder):
            add_context(net, size)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        # few images determine the variances of DCT coefficients better than pixel covariances
        coefficients = x if x.ndim == 2 else dct(x).flatten(1)
        u = self.linear(coefficients) + apply(self.encoder, x, context).to(x.dtype)
        return u, x.new_full(x.shape[:1], torch.nan)

    def inverse(self, u: Tensor, context: Context | None = None) -> Tensor:
        x = self.linear.inverse(u).unflatten(1, self.event_shape)
        x = x if x.ndim == 2 else dct(x, inverse=True)
        return x + apply(self.decoder, u, context).to(u.dtype)


def _convnets(shape: tuple[int, ...], dim: int, width: int) -> tuple[nn.Sequential, nn.Sequential]:
    check_divisible(shape, 2, "type=autoencoder")
    channels, rows, columns = shape
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    inside = width
    while not down or (rows % 2 == columns % 2 == 0 and min(rows, columns) > MIN_SIDE):
        rows, columns = rows // 2, columns // 2
        down += [nn.Conv2d(channels, inside, 4, stride=2, padding=1), nn.SiLU()]
        up = [nn.SiLU(), nn.Conv2d(inside, 4 * channels, 3, padding=1), _PixelShuffle(), *up]
        channels, inside = inside, 2 * inside
    code = channels, rows, columns
    *up, last, shuffle = up
    encoder = zero_initialized(*down, nn.Flatten(), nn.Linear(math.prod(code), dim))
    decoder = zero_initialized(nn.Linear(dim, math.prod(code)), nn.Unflatten(1, code), *up, last)
    return encoder, decoder.append(shuffle)


class _PixelShuffle(nn.Module):
    """:class:`torch.nn.PixelShuffle` that also accepts empty batches."""

    def forward(self, z: Tensor) -> Tensor:
        return channels_to_space(z)
