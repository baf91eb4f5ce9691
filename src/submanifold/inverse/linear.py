"""Linear estimates of events, given observations, and the covariance of their errors."""

import math
from collections.abc import Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor

from submanifold.evaluation.gaussian import Gaussian
from submanifold.inverse.operators import Operator
from submanifold.inverse.posterior import Latents, draw_normal

ENSEMBLE, ENSEMBLE_BATCH, BASIS_BATCH = 4096, 128, 256
FARTHEST = 4.0  # factor of the median norm above which samples of a model are left out
SMALLEST_VARIANCE = 1e-10  # of an ensemble along an axis, relative to the largest
SCALES = tuple(2 ** (-power / 2) for power in range(13))  # of deviations from the mean
LARGEST_OBSERVATION = 12_288  # numbers up to which a Gaussian's posterior is computed


class LinearEstimator:
    r"""Linear estimates of events x, given :math:`y = A(x) + \sigma \epsilon`.

    They are the posterior means if x and A(x) are normal, with the covariances :math:`s^2 C_{xy}`
    and :math:`s^2 C_{yy}`: :math:`m + K (y - A(x)_{mean})`, :math:`K = s^2 C_{xy} (s^2 C_{yy} +
    \sigma^2 I)^{-1}`. The scale s is 1, or that of each observation (:meth:`scaled`). All functions
    accept k copies of a batch of observations, one after the other.
    """

    mean: Tensor  # of events, (1, ...)
    observed: Tensor  # mean of A(x), (1, m)
    variances: Tensor  # eigenvalues of C_yy that are not 0, (k,)
    axes: Tensor  # their eigenvectors V, (m, k)
    cross: Tensor  # V^T C_yx, (k, D)
    noise: float  # standard deviation sigma
    scale: Tensor  # s, (batch, 1) or (1, 1)
    generator: torch.Generator | None  # on the CPU

    def scaled(self, y: Tensor) -> Self:
        """Return it with the scale of the largest evidence for each observation (batch, m).

        Events then have a mixture of normal densities of different scales (Portilla et al. 2003):
        flat images have less contrast than others.
        """
        squares, evidence = self._coordinates(y).square(), []
        for scale in SCALES:
            variances = scale**2 * self.variances + self.noise**2
            evidence.append(-(variances.log() + squares / variances).sum(1))
        scaled = copy(self)
        scaled.scale = self.mean.new_tensor(SCALES)[torch.stack(evidence).argmax(0), None]
        return scaled

    def estimate(self, y: Tensor) -> Tensor:
        """Return estimates of events, (batch, ...), given observations (batch, m)."""
        return self.mean + self._gain_product(self._coordinates(y))

    def draw(self, count: int) -> Tensor:
        """Draw errors of estimates, (count, ...)."""
        v, along = self._draw_deviations(count)
        noise = self.noise * draw_normal((count, len(self.variances)), self.generator, self.mean)
        return self._scale(v) * v - self._gain_product(self._scale(along) * along + noise)

    def _draw_deviations(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw deviations of events from the mean, and of their observations along the axes."""
        raise NotImplementedError

    def _coordinates(self, y: Tensor) -> Tensor:
        return (y - self.observed) @ self.axes

    def _gain_product(self, coordinates: Tensor) -> Tensor:
        """Compute K r, (batch, ...), of the coordinates of r along the axes, (batch, k)."""
        squared = self._scale(coordinates).square()
        weights = squared / (squared * self.variances + self.noise**2)
        return (weights * coordinates @ self.cross).view(-1, *self.mean.shape[1:])

    def _scale(self, v: Tensor) -> Tensor:
        """Return the scales of copies of the batch, to multiply v (k * batch, ...) by them."""
        return self.scale.repeat(len(v) // len(self.scale), 1).view(-1, *(1 for _ in v.shape[1:]))


class Ensemble(LinearEstimator):
    """Estimates with the covariances of samples and of their observations.

    They are those of an ensemble Kalman update (Evensen 1994). The samples are those of the
    Gaussian with the covariance of the training data if there is one, because a few samples of a
    flow can be far from all data; otherwise those of the model, a tensor of which is ``like``.
    """

    def __init__(
        self,
        latents: Latents,
        operator: Operator,
        noise: float,
        like: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        gaussian, pairs = latents.gaussian, []
        for _ in range(0, ENSEMBLE, ENSEMBLE_BATCH):
            z = draw_normal((ENSEMBLE_BATCH, latents.dim), generator, like)
            x = latents.decode(z) if gaussian is None else gaussian.mean + gaussian.draw(z)
            pairs.append((x, operator(x).flatten(1)))
        x, y = map(torch.cat, zip(*pairs, strict=True))
        shape, x = x.shape[1:], x.flatten(1)
        norms = x.norm(dim=1)
        kept = (norms < FARTHEST * norms.nanmedian()) & y.isfinite().all(1)
        x, y = x[kept], y[kept]
        mean, observed = x.mean(0, keepdim=True), y.mean(0, keepdim=True)
        root = math.sqrt(len(x))
        x, y = (x - mean) / root, (y - observed) / root
        precise = y.double()
        # the eigenvectors of Y^T Y, from whichever of Y^T Y and Y Y^T is smaller
        if y.shape[1] <= len(y):
            variances, axes = torch.linalg.eigh(precise.T @ precise)
        else:
            variances, left = torch.linalg.eigh(precise @ precise.T)
            axes = precise.T @ left / variances.abs().sqrt()
        large = variances > SMALLEST_VARIANCE * variances.max()
        self.mean, self.observed, self.scale = mean.view(1, *shape), observed, x.new_ones(1, 1)
        self.variances, self.axes = variances[large].to(x), axes[:, large].to(x)
        self.noise, self.generator = noise, generator
        self._deviations = x, y @ self.axes
        self.cross = self._deviations[1].T @ x

    def _draw_deviations(self, count: int) -> tuple[Tensor, Tensor]:
        events, along = self._deviations
        weights = draw_normal((count, len(events)), self.generator, self.mean)
        return (weights @ events).view(-1, *self.mean.shape[1:]), weights @ along


class GaussianPosterior(LinearEstimator):
    r"""The posterior N(..., P) of events with a density N(m, s^2 C), :math:`P = (I - K M) s^2 C`.

    M is the matrix of the operator, which is affine.
    """

    def __init__(
        self,
        gaussian: Gaussian,
        operator: Operator,
        noise: float,
        generator: torch.Generator | None = None,
    ) -> None:
        self.gaussian, self.noise, self.generator = gaussian, noise, generator
        self.mean = mean = gaussian.mean[None]
        # in double precision, because posterior variances are small differences of large ones
        precise = gaussian.to(torch.empty((), dtype=torch.double, device=mean.device))
        matrix = matrix_of(operator, mean.shape[1:], mean).double()
        cross = precise.covariance_product(matrix.view(-1, *mean.shape[1:])).flatten(1)  # M C
        variances, axes = torch.linalg.eigh(cross @ matrix.T)
        self.observed, self.scale = operator(mean).flatten(1), mean.new_ones(1, 1)
        self.variances, self.axes = variances.clamp_min(0).to(mean), axes.to(mean)
        self.cross, self.matrix = (axes.T @ cross).to(mean), (axes.T @ matrix).to(mean)

    def covariance_product(self, v: Tensor) -> Tensor:
        """Compute P v, in the shape of v (batch, ...)."""
        product = self._scale(v).square() * self.gaussian.covariance_product(v)
        return product - self._gain_product(product.flatten(1) @ self.matrix.T)

    def precision_product(self, v: Tensor) -> Tensor:
        r"""Compute :math:`v^T P^{-1} v = v^T C^{-1} v / s^2 + |M v|^2 / \sigma^2`, (batch,)."""
        squares = (v.flatten(1) @ self.matrix.T).square().sum(1) / self.noise**2
        return self.gaussian.precision_product(1 / self._scale(v) * v) + squares

    def _draw_deviations(self, count: int) -> tuple[Tensor, Tensor]:
        z = draw_normal((count, self.matrix.shape[1]), self.generator, self.mean)
        v = self.gaussian.draw(z)
        return v, v.flatten(1) @ self.matrix.T


def matrix_of(operator: Operator, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return the matrix (observations, D) of an affine operator on events of a shape."""
    basis = torch.eye(math.prod(shape)).to(like)
    offset = operator(torch.zeros_like(basis[:1]).view(1, *shape)).flatten(1)
    images = (operator(rows.view(-1, *shape)).flatten(1) for rows in basis.split(BASIS_BATCH))
    return torch.cat([image - offset for image in images]).T.contiguous()
