"""Invertible linear maps: activation normalization, 1x1 convolutions and full matrices."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection, full_precision
from submanifold.flows.conditional import ConditionalLatents
from submanifold.flows.initialization import DataInitialized
from submanifold.flows.orthogonal import random_orthonormal

MIN_STD = 1e-6


class ActNorm(DataInitialized, Bijection):
    r"""Activation normalization: a scale and a shift per channel, :math:`z = (x - b)\, e^{s}`.

    It starts as the identity (Kingma & Dhariwal 2018, section 3.1). Data-dependent initialization
    sets mean 0 and variance 1 for each channel of z.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize (batch, channels, ...)."""
        z = (x - _per_channel(self.shift, x)) * _per_channel(self.log_scale.exp(), x)
        elements_per_scale = x.shape[1:].numel() // len(self.log_scale)
        return z, (self.log_scale.sum() * elements_per_scale).expand(x.shape[0])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undo the normalization."""
        return z * _per_channel((-self.log_scale).exp(), z) + _per_channel(self.shift, z)

    def initialize_from(self, x: Tensor) -> None:
        """Set mean 0 and variance 1 for each channel."""
        axes = [0, *range(2, x.ndim)]
        self.shift.copy_(x.mean(axes))
        self.log_scale.copy_(-x.std(axes, correction=0).clamp_min(MIN_STD).log())


class Similarity(ActNorm):
    """:class:`ActNorm` with one scale for all channels, which preserves ratios of distances."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def initialize_from(self, x: Tensor) -> None:
        """Set mean 0 for each channel, and variance 1 over all channels."""
        self.shift.copy_(x.mean([0, *range(2, x.ndim)]))
        rms = (x - _per_channel(self.shift, x)).square().mean().sqrt()
        self.log_scale.copy_(-rms.clamp_min(MIN_STD).log())


class Linear(DataInitialized, Bijection):
    r"""Normalized channels times a learned matrix, :math:`z_i = W\,\mathrm{diag}(e^s)(x_i - b)`.

    On images it is Glow's actnorm and invertible 1x1 convolution (Kingma & Dhariwal 2018, sections
    3.1 and 3.2), with :math:`\log|\det J| = hw\,(\log|\det W| + \sum s)`. W starts as a random
    rotation.

    Args:
        channels: Number of channels, the second axis of x.
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

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize and mix the channels of (batch, channels) or (batch, channels, h, w)."""
        with full_precision(x):
            (matrix,), (shift,), (log_det,) = stack_maps([self])
            z = _at_each_position(matrix, shift, x)
            return z, (log_det * x.shape[2:].numel()).expand(x.shape[0])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undo the mixing and the normalization."""
        with full_precision(z):
            (matrix,), (shift,) = stack_inverses([self])
            return _at_each_position(matrix, shift, z)

    def initialize_from(self, x: Tensor) -> None:
        """Initialize the normalization, and the matrix if it whitens."""
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

    def _forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map (batch, dim)."""
        return Linear.forward(self, x)

    def _inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undo the map."""
        return Linear.inverse(self, z)


def stack_maps(layers: Sequence[Linear]) -> tuple[Tensor, Tensor, Tensor]:
    """Write n layers as z = matrix x + shift.

    Returns matrices (n, channels, channels), shifts (n, channels), and log-determinants (n,) at one
    position.
    """
    weight, log_scale, shift = _stack_parameters(layers)
    matrix = weight * log_scale.exp()[:, None]
    log_det = torch.linalg.slogdet(weight).logabsdet + log_scale.sum(1)
    return matrix, -(matrix @ shift[:, :, None])[:, :, 0], log_det


def stack_inverses(layers: Sequence[Linear]) -> tuple[Tensor, Tensor]:
    """Compute the matrices and shifts, as in :func:`stack_maps`, of the layers' inverses."""
    weight, log_scale, shift = _stack_parameters(layers)
    # inv synchronizes with the device to check for singularity
    inverse = torch.linalg.inv_ex(weight).inverse
    return (-log_scale).exp()[:, :, None] * inverse, shift


def _stack_parameters(layers: Sequence[Linear]) -> tuple[Tensor, Tensor, Tensor]:
    parameters = ((layer.matrix, layer.norm.log_scale, layer.norm.shift) for layer in layers)
    weights, log_scales, shifts = map(torch.stack, zip(*parameters, strict=True))
    return weights, log_scales, shifts


def _at_each_position(matrix: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    return F.linear(x.movedim(1, -1), matrix, shift).movedim(-1, 1)


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(1, -1, *(1 for _ in x.shape[2:]))
