"""An elementwise map of images that spreads the noise of black pixels."""

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from submanifold.flows.bijection import Bijection
from submanifold.flows.context import Context

MASS = 0.97  # of the normal distribution that the noise of black pixels gets, from the left
SMALLEST = 0.01  # noise below which the map is linear, with a slope that float32 can invert


class BlackLevel(Bijection):
    r"""Make the dequantization noise of black pixels nearly normal, with a larger scale.

    In images of digits, X-rays or scans most pixels are 0. Dequantized, they are uniform on a bin
    of width 1/256, which a flow has to learn as a narrow peak of a shape that is not normal. With
    :math:`e = 256\,(x + \tfrac12)`, the map is

    .. math:: y = 1 + s\,(\Phi^{-1}(c\,e) - \Phi^{-1}(c)) \quad\text{for } e < 1, \qquad
              y = e \quad\text{for } e \ge 1

    for c = 0.97, so that the noise of black pixels has the scale of s grey levels, and all other
    pixels stay as they are. The normal quantile function of uniform noise is normal; 3% of its
    right tail is missing, so that the map is continuous. Below e = 0.01 it continues linearly, such
    that all of R has an image. Hardly any decoded pixel is below -0.5.

    Args:
        spread: s, in grey levels.

    Example:
        >>> z, log_det = BlackLevel(8.0)(torch.tensor([[-0.499, 0.25]]))
        >>> z.round(decimals=3), BlackLevel(8.0).inverse(z)
        (tensor([[-0.5760,  0.2500]]), tensor([[-0.4990,  0.2500]]))
    """

    def __init__(self, spread: float):
        super().__init__()
        self.spread = spread
        start = NormalDist().inv_cdf(MASS * SMALLEST)
        self.end = NormalDist().inv_cdf(MASS)  # quantile of the brightest noise
        self.lowest = 1 + spread * (start - self.end)  # y where the map becomes linear
        self.log_scale = math.log(spread * MASS * math.sqrt(2 * math.pi))
        self.log_slope = self.log_scale + start**2 / 2  # of the linear part

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        e = 256 * (x + 0.5)
        is_black, is_curved = e < 1, e >= SMALLEST
        quantile = ndtri(MASS * e.clamp(SMALLEST, 1.0))
        curved = 1 + self.spread * (quantile - self.end)
        linear = self.lowest + (e - SMALLEST) * math.exp(self.log_slope)
        y = torch.where(is_black, torch.where(is_curved, curved, linear), e)
        slopes = torch.where(is_curved, self.log_scale + quantile.square() / 2, self.log_slope)
        log_det = torch.where(is_black, slopes, 0.0).flatten(1).sum(1)
        return y / 256 - 0.5, log_det

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        y = 256 * (z + 0.5)
        quantile = (y.clamp(self.lowest, 1.0) - 1) / self.spread + self.end
        linear = SMALLEST + (y - self.lowest) * math.exp(-self.log_slope)
        black = torch.where(y >= self.lowest, ndtr(quantile) / MASS, linear)
        return torch.where(y < 1, black, y) / 256 - 0.5
