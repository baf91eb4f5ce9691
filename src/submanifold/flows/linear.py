"""Invertible linear maps: the 1x1 convolution of Glow, and a full matrix on vectors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows.actnorm import ActNorm
from submanifold.flows.bijection import Bijection, Flow, full_precision


class Linear(Bijection):
    r"""Normalised channels times a learned matrix, :math:`z_i = W\,\mathrm{diag}(e^s)(x_i - b)`.

    At every position i alike: on images these are Glow's actnorm and its invertible 1x1 convolution
    (Kingma & Dhariwal 2018, sections 3.1 and 3.2), with
    :math:`\log|\det J| = hw\,(\log|\det W| + \sum s)`; on vectors an ordinary square matrix. It
    starts as a random rotation, or, where it whitens, is set from data (:func:`initialize`) so that
    z has uncorrelated channels of variance 1, the principal components of x, largest first.

    Args:
        channels: Number of channels, the second axis of x.
        whiten: Whether it whitens.
    """

    def __init__(self, channels: int, whiten: bool = False):
        super().__init__()
        self.norm = ActNorm(channels)
        # qr's orthogonal factor, without loading sympy on the meta device, as qr and randn would
        normal = torch.normal(0.0, 1.0, (channels, channels))
        self.weight = nn.Parameter(torch.linalg.householder_product(*torch.geqrf(normal)))
        self.whiten = whiten

    @property
    def matrix(self) -> Tensor:
        """W."""
        return self.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and mix the channels of (batch, channels) or (batch, channels, h, w)."""
        if self.norm.pending:
            self.fit(x)
        with full_precision(x):
            (matrix,), (shift,), (log_det,) = mixing([self])
            z = _across_channels(matrix, shift, x)
            return z, (log_det * x.shape[2:].numel()).expand(len(x))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set the normalisation, and the matrix where it whitens, from a batch."""
        self.norm.fit(x)
        normalized = self.norm(x)[0].movedim(1, -1).flatten(0, -2).double()
        if self.whiten and len(normalized) > 2 * len(self.weight):  # few leave empty directions
            variances, axes = torch.linalg.eigh(normalized.T @ normalized / len(normalized))
            whitening = variances.clamp_min(1 / len(normalized)).rsqrt()[:, None] * axes.T
            self.weight.copy_(whitening.flip(0))

    def inverse(self, z: Tensor) -> Tensor:
        """Undo the mixing and the normalisation."""
        with full_precision(z):
            (matrix,), (shift,) = inverse_mixing([self])
            return _across_channels(matrix, shift, z)


def mixing(layers: Sequence[Linear]) -> tuple[Tensor, Tensor, Tensor]:
    """Write layers of equally many channels as z = matrix x + shift, all of them together.

    Returns:
        Matrices (layers, channels, channels), shifts (layers, channels), and the log-determinants
        (layers,) of one position.
    """
    weight, log_scale, shift = _stacked(layers)
    # the scale goes into the matrix, and the shift behind it
    matrix = weight * log_scale.exp()[:, None]
    log_det = torch.linalg.slogdet(weight).logabsdet + log_scale.sum(1)
    return matrix, -(matrix @ shift[:, :, None])[:, :, 0], log_det


def inverse_mixing(layers: Sequence[Linear]) -> tuple[Tensor, Tensor]:
    """Matrices and shifts, as in :func:`mixing`, of the layers' inverses."""
    weight, log_scale, shift = _stacked(layers)
    # inv_ex, because inv would wait for the device to check for singularity
    inverse = torch.linalg.inv_ex(weight).inverse
    return (-log_scale).exp()[:, :, None] * inverse, shift


def _stacked(layers: Sequence[Linear]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.stack([layer.matrix for layer in layers]),
        torch.stack([layer.norm.log_scale for layer in layers]),
        torch.stack([layer.norm.shift for layer in layers]),
    )


def _across_channels(matrix: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """Multiply at every position; images come out channels last, as the products find them."""
    return F.linear(x.movedim(1, -1), matrix, shift).movedim(-1, 1)


class Affine(Linear, Flow):
    r"""Any affine bijection of vectors, as a flow.

    With a normal latent it is the Gaussian with full covariance; in a stage of dimension d,
    probabilistic principal components. Small cases with a known answer use it.

    Args:
        dim: Number of coordinates.
    """

    axes = (1,)

    def __init__(self, dim: int):
        super().__init__(dim)
        self.event_shape, self.config = (dim,), {"dim": dim}
