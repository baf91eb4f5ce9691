"""Invertible linear maps: activation normalization, 1x1 convolutions and full matrices."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection, DataInitialized, full_precision
from submanifold.flows.conditional import ConditionalLatents
from submanifold.flows.context import Context
from submanifold.flows.orthogonal import random_orthonormal

MIN_STD = 1e-6


class ActNorm(DataInitialized, Bijection):
    r"""Activation normalization: a scale and a shift per channel, :math:`z = (x - b)\, e^{s}`.

    x is (batch, channels, ...). It starts as the identity (Kingma & Dhariwal 2018, section 3.1).
    Data-dependent initialization sets mean 0 and variance 1 for each channel of z.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        z = (x - _per_channel(self.shift, x)) * _per_channel(self.log_scale.exp(), x)
        elements_per_scale = x.shape[1:].numel() // len(self.log_scale)
        return z, (self.log_scale.sum() * elements_per_scale).expand(x.shape[0])

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        return z * _per_channel((-self.log_scale).exp(), z) + _per_channel(self.shift, z)

    def initialize_from(self, x: Tensor) -> None:
        axes = [0, *range(2, x.ndim)]
        self.shift.copy_(x.mean(axes))
        self.log_scale.copy_(-x.std(axes, correction=0).clamp_min(MIN_STD).log())


class Similarity(ActNorm):
    """:class:`ActNorm` with one scale for all channels, which preserves ratios of distances.

    Data-dependent initialization sets mean 0 for each channel, and variance 1 over all channels.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def initialize_from(self, x: Tensor) -> None:
        self.shift.copy_(x.mean([0, *range(2, x.ndim)]))
        rms = (x - _per_channel(self.shift, x)).square().mean().sqrt()
        self.log_scale.copy_(-rms.clamp_min(MIN_STD).log())


class Linear(DataInitialized, Bijection):
    r"""Normalized channels times a learned matrix, :math:`z_i = W\,\mathrm{diag}(e^s)(x_i - b)`.

    On images it is Glow's actnorm and invertible 1x1 convolution (Kingma & Dhariwal 2018, sections
    3.1 and 3.2), with :math:`\log|\det J| = hw\,(\log|\det W| + \sum s)`. W starts as a random
    rotation.

    Args:
        channels: Number of channels of x, (batch, channels) or (batch, channels, h, w).
        whiten: Whether data-dependent initialization sets W such that the channels of z are the
            principal components of x, largest first, scaled to variance 1.
    """

    def __init__(self, channels: int, whiten: bool = False):
        super().__init__()
        self.norm = ActNorm(channels)
        self.weight = nn.Parameter(random_orthonormal(channels, channels))
        self.whiten = whiten

    @property
    def matrix(self) -> Tensor:
        """W, (channels, channels)."""
        return self.weight

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            (matrix,), (shift,), (log_det,) = stack_maps([self])
            z = at_each_position(x, matrix, shift)
            return z, (log_det * x.shape[2:].numel()).expand(x.shape[0])

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        with full_precision(z):
            (matrix,), (shift,), _ = stack_inverses([self])
            return at_each_position(z, matrix, shift)

    def initialize_from(self, x: Tensor) -> None:
        normalized = self.norm(x)[0].movedim(1, -1).flatten(0, -2).double()
        # fewer samples determine the directions of small variance badly
        if self.whiten and len(normalized) > 2 * len(self.weight):
            variances, axes = torch.linalg.eigh(normalized.T @ normalized / len(normalized))
            whitening = variances.clamp_min(1 / len(normalized)).rsqrt()[:, None] * axes.T
            self.weight.copy_(whitening.flip(0))


class Affine(ConditionalLatents, Linear):
    """Affine bijection of vectors.

    With a standard normal latent it is a Gaussian with full covariance; in a stage of dimension d,
    probabilistic PCA. A context changes the mean, and the variances in the coordinates z.
    """

    axes = (1,)

    def __init__(self, dim: int):
        super().__init__(dim)
        self.event_shape = (dim,)

    def _forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        return Linear.forward(self, x)

    def _inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        return Linear.inverse(self, z)


def stack_maps(layers: Sequence[Linear]) -> tuple[Tensor, Tensor, Tensor]:
    """Return n layers as matrices and shifts, and log-determinants (n,) at one position."""
    weight, log_scale, shift = _stack_parameters(layers)
    matrix = weight * log_scale.exp()[:, None]
    log_det = torch.linalg.slogdet(weight).logabsdet + log_scale.sum(1)
    return matrix, -(matrix @ shift[:, :, None])[:, :, 0], log_det


def stack_inverses(layers: Sequence[Linear]) -> tuple[Tensor, Tensor, None]:
    """Compute the matrices and shifts of the layers' inverses, without log-determinants."""
    weight, log_scale, shift = _stack_parameters(layers)
    # inv synchronizes with the device to check for singularity
    inverse = torch.linalg.inv_ex(weight).inverse
    return (-log_scale).exp()[:, :, None] * inverse, shift, None


def _stack_parameters(layers: Sequence[Linear]) -> tuple[Tensor, Tensor, Tensor]:
    parameters = ((layer.matrix, layer.norm.log_scale, layer.norm.shift) for layer in layers)
    weights, log_scales, shifts = map(torch.stack, zip(*parameters, strict=True))
    return weights, log_scales, shifts


def at_each_position(x: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """Multiply the channels of x, its second axis, by a matrix, and add a shift."""
    return F.linear(x.movedim(1, -1), matrix, shift).movedim(-1, 1)


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(1, -1, *(1 for _ in x.shape[2:]))
