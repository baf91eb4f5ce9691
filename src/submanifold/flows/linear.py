"""Invertible linear maps: the 1x1 convolution of Glow, and a full matrix on vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows.actnorm import ActNorm
from submanifold.flows.bijection import Bijection, Compose, Flow, full_precision


class Linear(Bijection):
    r"""A learned matrix across the channels, :math:`z_{:,i} = W x_{:,i}` at every position i.

    On images it is the invertible 1x1 convolution (Kingma & Dhariwal 2018, section 3.2), with
    :math:`\log|\det J| = hw \log|\det W|`; on vectors an ordinary square matrix. It starts as a
    random rotation.

    Args:
        channels: Number of channels, the second axis of x.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply the channels of (batch, channels) or (batch, channels, height, width)."""
        with full_precision(x):
            positions = x[0, 0].numel()
            log_det = torch.linalg.slogdet(self.weight).logabsdet * positions
            return _across_channels(self.weight, x), log_det.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Multiply the channels by the inverse matrix."""
        with full_precision(z):
            # inv_ex, because inv would wait for the device to check for singularity
            return _across_channels(torch.linalg.inv_ex(self.weight).inverse, z)


def _across_channels(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight) if x.ndim == 2 else F.conv2d(x, weight[:, :, None, None])


class Affine(Compose, Flow):
    r"""Any affine bijection of vectors, :math:`z = W\,\mathrm{diag}(e^{s})(x - b)`.

    With a normal latent it is the Gaussian with full covariance; in a stage of dimension d,
    probabilistic principal components. Small cases with a known answer use it.

    Args:
        dim: Number of coordinates.
    """

    def __init__(self, dim: int):
        super().__init__([ActNorm(dim), Linear(dim)])
        self.event_shape = (dim,)
        self.config = {"dim": dim}
