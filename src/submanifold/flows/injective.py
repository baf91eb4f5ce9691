"""An injective linear map and its pseudoinverse, on vectors and on the channels of images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.flows.bijection import full_precision

MOST_COORDINATES = 2048


class InjectiveLinear(nn.Module):
    r"""Channels to more of them, :math:`x_i = V\,\mathrm{diag}(e^s)\, u_i + b`, and back.

    .. math:: u_i = \mathrm{diag}(e^{-s})\, (V^T V)^{-1} V^T (x_i - b)

    At every position i alike: on images an injective 1x1 convolution (Kothari et al. 2021, section
    3.1), on vectors an ordinary matrix. V starts with orthonormal columns and is then any matrix of
    full rank: nothing has to keep its columns orthogonal, and that :math:`V^T V` squares its
    condition costs no digits, because the scales, which do differ a lot, stand apart.

    It starts at random, or, set from data (:func:`submanifold.flows.initialize`), with the
    principal directions of x, largest first.

    Args:
        outer: Channels of x.
        inner: Channels of u, at most as many.
        whiten: Whether data set the scales, to a variance of 1 for each channel of u; else u keeps
            the distances that x has along the directions.
    """

    def __init__(self, outer: int, inner: int, whiten: bool = False):
        super().__init__()
        # householder_product rather than qr for the meta device, as in Linear
        columns = torch.linalg.householder_product(
            *torch.geqrf(torch.normal(0, 1.0, (outer, inner)))
        )
        # of V, kept at size 1 whatever its height: a step of Adam has one size for all weights
        self.height = math.sqrt(outer)
        self.weight = nn.Parameter(self.height * columns)
        self.log_scale = nn.Parameter(torch.zeros(inner))
        self.shift = nn.Parameter(torch.zeros(outer))
        self.whiten = whiten
        self.pending = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, outer) or (batch, outer, h, w) to the channels inside."""
        if self.pending:
            self.fit(x)
        with full_precision(x):
            columns = self.weight / self.height
            # cholesky_ex, because cholesky would wait for the device to check for singularity
            triangle = torch.linalg.cholesky_ex(columns.T @ columns).L
            rows = torch.cholesky_solve(columns.T, triangle)
            rows = rows * (-self.log_scale).exp()[:, None]
            return F.linear(x.movedim(1, -1) - self.shift, rows).movedim(-1, 1)

    def inverse(self, u: Tensor) -> Tensor:
        """Map (batch, inner) or (batch, inner, h, w) to the channels outside."""
        with full_precision(u):
            matrix = self.weight * (self.log_scale.exp() / self.height)
            return F.linear(u.movedim(1, -1), matrix, self.shift).movedim(-1, 1)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set the directions, the shift, and the scales where it whitens, from a batch."""
        rows = x.movedim(1, -1).flatten(0, -2)
        columns, deviations = principal_directions(rows, len(self.log_scale))
        self.weight.copy_(self.height * columns)
        self.shift.copy_(rows.mean(0))
        self.log_scale.copy_(deviations.log() if self.whiten else torch.zeros_like(deviations))
        self.pending = False


def principal_directions(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    r"""Directions of largest variance, of rows that may be fewer than their coordinates.

    Eigenvectors of the covariance S shrunk towards its diagonal, by as much as its other entries
    are noise (Schäfer & Strimmer 2005, section 2.4, target D):

    .. math:: (1 - \lambda)\, S + \lambda\, \mathrm{diag}\, S, \qquad
              \lambda = \frac{\sum_{i \ne j} \mathrm{Var}(S_{ij})}{\sum_{i \ne j} S_{ij}^2}

    Few rows know little of how coordinates go together, but well how large each is. Of very many
    coordinates only the largest are looked at.

    Args:
        x: (rows, coordinates).
        count: Number of directions.

    Returns:
        Orthonormal columns (coordinates, count), largest first, and the standard deviations along
        them (count,).
    """
    rows, coordinates = x.shape
    centred = (x - x.mean(0)).double()
    squares = centred.square()
    largest = squares.sum(0).topk(min(coordinates, max(MOST_COORDINATES, count))).indices
    centred, squares = centred[:, largest], squares[:, largest]
    covariance = centred.T @ centred / rows
    variances = covariance.diagonal().clone()
    of_signal = covariance.square().sum() - variances.square().sum()
    of_products = (squares.sum(1).square() - squares.square().sum(1)).mean()
    shrinkage = ((of_products - of_signal) / (rows * of_signal)).nan_to_num(0.0).clamp(1e-6, 1)
    covariance = torch.lerp(covariance, variances.diag(), shrinkage)
    variances, axes = torch.linalg.eigh(covariance)
    columns = centred.new_zeros(coordinates, count)
    columns[largest] = axes.flip(1)[:, :count]
    # along directions outside the rows' span the coordinates' own variances say more
    own = squares.mean(0) @ columns[largest].square()
    found = (rows * variances.flip(0)[:count] + len(largest) * own) / (rows + len(largest))
    return columns, found.clamp_min(1e-12).sqrt()
