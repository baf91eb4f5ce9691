"""Linear estimates of events, given observations, and the covariance of their errors."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Self

import torch
from torch import Tensor

from submanifold.inverse.baselines import matrix_of
from submanifold.inverse.gaussian import Gaussian
from submanifold.inverse.latents import Latents

log = logging.getLogger(__name__)

ENSEMBLE, ENSEMBLE_BATCH = 4096, 128
FARTHEST = 4.0
"""Samples of the model whose norm exceeds the median norm by this factor are left out."""
SMALLEST_VARIANCE = 1e-10
"""Smallest variance of an ensemble along an axis, relative to the largest."""
SCALES = tuple(2 ** (-power / 2) for power in range(13))
"""Scales that the deviations of an event from the mean may have: 1 to 1/64."""
LARGEST_OBSERVATION = 12_288
"""Elements of an observation up to which a Gaussian's posterior is computed."""
SLOW_OBSERVATION = 4096
"""Elements of an observation above which its covariance takes more than ten seconds."""


class LinearEstimator(ABC):
    r"""Linear estimates of events x, given :math:`y = A(x) + \sigma \epsilon`.

    They are the posterior means if x and A(x) are normal, with the covariances :math:`s^2 C_{xy}`
    and :math:`s^2 C_{yy}`: :math:`m + K (y - A(x)_{mean})`, :math:`K = s^2 C_{xy} (s^2 C_{yy} +
    \sigma^2 I)^{-1}`. The scale s is 1, or that of each observation (:meth:`scaled`).

    All functions accept k copies of a batch of observations, one after the other.

    Args:
        mean: Mean of events, (1, ...).
        observed: Mean of A(x), (1, m).
        variances: Eigenvalues of :math:`C_{yy}` that are not 0, (k,).
        axes: Their eigenvectors V, (m, k).
        cross: :math:`V^T C_{yx}`, (k, D).
        noise: Standard deviation :math:`\sigma`.
        generator: Generator on the CPU.
    """

    def __init__(
        self,
        mean: Tensor,
        observed: Tensor,
        variances: Tensor,
        axes: Tensor,
        cross: Tensor,
        noise: float,
        generator: torch.Generator | None,
    ) -> None:
        self.mean, self.observed = mean, observed
        self.variances, self.axes, self.cross = variances, axes, cross
        self.noise, self.generator = noise, generator
        self.scale = mean.new_ones(1, 1)

    def scaled(self, y: Tensor) -> Self:
        """Return it with the scale of the largest evidence for each observation (batch, m).

        Events then have a mixture of normal densities of different scales (Portilla et al. 2003):
        flat images have less contrast than others.
        """
        squares, evidence = self._coordinates(y).square(), []
        for scale in SCALES:
            variances = scale**2 * self.variances + self.noise**2
            evidence.append(-(variances.log() + squares / variances).sum(1))
        found = copy(self)
        found.scale = self.mean.new_tensor(SCALES)[torch.stack(evidence).argmax(0), None]
        return found

    def at_noise(self, noise: float) -> Self:
        """Return it for observations with another noise; the decomposition is shared."""
        other = copy(self)
        other.noise = noise
        return other

    def estimate(self, y: Tensor) -> Tensor:
        """Return estimates of events, (batch, ...), given observations (batch, m)."""
        return self.mean + self._gain_product(self._coordinates(y))

    def draw(self, count: int) -> Tensor:
        """Draw errors of estimates, (count, ...)."""
        v, along = self._draw_deviations(count)
        scale = self._scale(count)
        noise = self.noise * self._normal(count, len(self.variances))
        return _times(scale, v) - self._gain_product(scale * along + noise)

    @abstractmethod
    def _draw_deviations(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw deviations of events from the mean, and of their observations along the axes."""

    def _coordinates(self, y: Tensor) -> Tensor:
        return (y - self.observed) @ self.axes

    def _gain_product(self, coordinates: Tensor) -> Tensor:
        """Compute K r, (batch, ...), of the coordinates of r along the axes, (batch, k)."""
        squared = self._scale(len(coordinates)).square()
        weights = squared / (squared * self.variances + self.noise**2)
        return (weights * coordinates @ self.cross).view(-1, *self.mean.shape[1:])

    def _scale(self, count: int) -> Tensor:
        """Scales of copies of the batch, (count, 1)."""
        return self.scale.repeat(count // len(self.scale), 1)

    def _normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator, dtype=self.mean.dtype)
        return drawn.to(self.mean.device)


class Ensemble(LinearEstimator):
    """Estimates with the covariances of samples and of their observations.

    They are those of an ensemble Kalman update (Evensen 1994). The samples are those of the
    Gaussian with the covariance of the training data if the model has one and its latents are those
    of all of space, because a few samples of a flow can be far from all data; otherwise those of
    the model.

    Args:
        latents: Latents of the model.
        operator: The operator A.
        noise: Standard deviation of the noise.
        like: A tensor on the device and with the dtype of the model.
        generator: Generator on the CPU.
    """

    @torch.no_grad()
    def __init__(
        self,
        latents: Latents,
        operator: Callable[[Tensor], Tensor],
        noise: float,
        like: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        gaussian = None if latents.log_prob is None else latents.gaussian
        events, observations = [], []
        for _ in range(0, ENSEMBLE, ENSEMBLE_BATCH):
            z = torch.randn(ENSEMBLE_BATCH, latents.dim, generator=generator, dtype=like.dtype)
            z = z.to(like.device)
            x = latents.decode(z) if gaussian is None else gaussian.mean + gaussian.draw(z)
            events.append(x)
            observations.append(operator(x).flatten(1))
        x, y = torch.cat(events), torch.cat(observations)
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
        some = variances > SMALLEST_VARIANCE * variances.max()
        variances, axes = variances[some].to(x), axes[:, some].to(x)
        self._deviations = x, y @ axes
        cross = self._deviations[1].T @ x
        super().__init__(mean.view(1, *shape), observed, variances, axes, cross, noise, generator)

    def _draw_deviations(self, count: int) -> tuple[Tensor, Tensor]:
        events, along = self._deviations
        weights = self._normal(count, len(events))
        return (weights @ events).view(-1, *self.mean.shape[1:]), weights @ along


class GaussianPosterior(LinearEstimator):
    r"""The posterior of events x with a normal density, given :math:`y = M x + \sigma \epsilon`.

    With the density :math:`N(m, s^2 C)` it is normal, with the covariance :math:`P = (I - K M) s^2
    C`.

    Args:
        gaussian: The density N(m, C).
        operator: An affine operator with the matrix M, a function of events (batch, ...).
        noise: Standard deviation :math:`\sigma`.
        generator: Generator on the CPU.
    """

    def __init__(
        self,
        gaussian: Gaussian,
        operator: Callable[[Tensor], Tensor],
        noise: float,
        generator: torch.Generator | None = None,
    ) -> None:
        self.gaussian = gaussian
        mean = gaussian.mean[None]
        # in double precision, because posterior variances are small differences of large ones
        precise = gaussian.to(torch.empty((), dtype=torch.double, device=mean.device))
        matrix = matrix_of(operator, mean.shape[1:], mean).double()
        if len(matrix) > SLOW_OBSERVATION:
            log.info("linear estimate: eigenvectors of the covariance of %d numbers", len(matrix))
        cross = precise.covariance_product(matrix.view(-1, *mean.shape[1:])).flatten(1)  # M C
        variances, axes = torch.linalg.eigh(cross @ matrix.T)
        self.matrix = (axes.T @ matrix).to(mean)
        """M along the axes."""
        super().__init__(
            mean, operator(mean).flatten(1), variances.clamp_min(0).to(mean), axes.to(mean),
            (axes.T @ cross).to(mean), noise, generator,
        )  # fmt: skip

    def covariance_product(self, v: Tensor) -> Tensor:
        """Compute P v, in the shape of v (batch, ...)."""
        product = self.gaussian.covariance_product(v)
        product = _times(self._scale(len(v)).square(), product)
        return product - self._gain_product(product.flatten(1) @ self.matrix.T)

    def precision_product(self, v: Tensor) -> Tensor:
        r"""Compute :math:`v^T P^{-1} v = v^T C^{-1} v / s^2 + |M v|^2 / \sigma^2`, (batch,)."""
        squares = (v.flatten(1) @ self.matrix.T).square().sum(1) / self.noise**2
        return self.gaussian.precision_product(_times(1 / self._scale(len(v)), v)) + squares

    def _draw_deviations(self, count: int) -> tuple[Tensor, Tensor]:
        v = self.gaussian.draw(self._normal(count, self.matrix.shape[1]))
        return v, v.flatten(1) @ self.matrix.T


def _times(scale: Tensor, v: Tensor) -> Tensor:
    """Multiply events (batch, ...) by scales (batch, 1)."""
    return scale.view(-1, *(1 for _ in v.shape[1:])) * v
