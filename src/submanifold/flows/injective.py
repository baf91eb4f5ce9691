"""Injective linear maps, and the principal directions that initialize them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows.bijection import DataInitialized, full_precision
from submanifold.flows.linear import at_each_position
from submanifold.flows.orthogonal import random_orthonormal

MAX_COVARIANCE_SIZE = 2048


class InjectiveLinear(DataInitialized):
    r"""Linear map to more channels, :math:`x_i = V\,\mathrm{diag}(e^s)\, u_i + b`, and its inverse.

    .. math:: u_i = \mathrm{diag}(e^{-s})\, (V^T V)^{-1} V^T (x_i - b)

    On images it is an injective 1x1 convolution (Kothari et al. 2021, section 3.1). V starts with
    random orthonormal columns and may become any matrix of full rank; the separate scales keep
    :math:`V^T V` well conditioned. Data-dependent initialization sets V to the principal directions
    of x, largest first.

    x has ``outer`` channels and u ``inner``. With ``whiten`` the initialization scales the channels
    of u to variance 1; otherwise u keeps distances.
    """

    def __init__(self, outer: int, inner: int, whiten: bool = False):
        super().__init__()
        # weights of size 1 for any number of channels: Adam takes equal steps for all weights
        self.weight_scale = math.sqrt(outer)
        self.weight = nn.Parameter(self.weight_scale * random_orthonormal(outer, inner))
        self.log_scale = nn.Parameter(torch.zeros(inner))
        self.shift = nn.Parameter(torch.zeros(outer))
        self.whiten = whiten

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, outer, ...) to (batch, inner, ...)."""
        with full_precision(x):
            columns = self.weight / self.weight_scale
            # cholesky synchronizes with the device to check for singularity
            triangle = torch.linalg.cholesky_ex(columns.T @ columns).L
            rows = torch.cholesky_solve(columns.T, triangle)
            rows = rows * (-self.log_scale).exp()[:, None]
            return F.linear(x.movedim(1, -1) - self.shift, rows).movedim(-1, 1)

    def inverse(self, u: Tensor) -> Tensor:
        """Map (batch, inner, ...) to (batch, outer, ...)."""
        with full_precision(u):
            matrix = self.weight * (self.log_scale.exp() / self.weight_scale)
            return at_each_position(u, matrix, self.shift)

    def initialize_from(self, x: Tensor) -> None:
        samples = x.movedim(1, -1).flatten(0, -2)
        columns, deviations = principal_directions(samples, len(self.log_scale))
        self.weight.copy_(self.weight_scale * columns)
        self.shift.copy_(samples.mean(0))
        self.log_scale.copy_(deviations.log() if self.whiten else torch.zeros_like(deviations))


def principal_directions(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    r"""Estimate the directions of largest variance, also from fewer samples than coordinates.

    They are eigenvectors of the covariance S, shrunk towards its diagonal (Schäfer & Strimmer 2005,
    section 2.4, target D):

    .. math:: (1 - \lambda)\, S + \lambda\, \mathrm{diag}\, S, \qquad
              \lambda = \frac{\sum_{i \ne j} \mathrm{Var}(S_{ij})}{\sum_{i \ne j} S_{ij}^2}

    Only the 2048 coordinates of largest variance are used if there are more. From x (samples,
    coordinates) it returns orthonormal columns (coordinates, count), and the standard deviations
    along them (count,).
    """
    n, coordinates = x.shape
    centred = (x - x.mean(0)).double()
    squares = centred.square()
    size = min(coordinates, max(MAX_COVARIANCE_SIZE, count))
    largest = squares.sum(0).topk(size).indices
    centred, squares = centred[:, largest], squares[:, largest]
    covariance = centred.T @ centred / n
    variances = covariance.diagonal().clone()
    signal = covariance.square().sum() - variances.square().sum()
    products = (squares.sum(1).square() - squares.square().sum(1)).mean()
    shrinkage = ((products - signal) / (n * signal)).nan_to_num(0.0).clamp(1e-6, 1)
    covariance = torch.lerp(covariance, variances.diag(), shrinkage)
    variances, axes = torch.linalg.eigh(covariance)
    columns = centred.new_zeros(coordinates, count)
    columns[largest] = axes.flip(1)[:, :count]
    # outside of the span of few samples, the diagonal of S determines the variances
    diagonal = squares.mean(0) @ columns[largest].square()
    variances = (n * variances.flip(0)[:count] + size * diagonal) / (n + size)
    return columns, variances.clamp_min(1e-12).sqrt()
