"""The baselines that every figure stands beside: PCA and the full-covariance Gaussian."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PCA:
    """Mean, principal axes and variances of flat data in R^D (method.md 4).

    Attributes:
        mean: (D,).
        axes: (D, D), one axis a column, by falling variance.
        variances: (D,), falling.
        shrinkage: Share of the isotropic covariance in the Gaussian, in [0, 1].
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    shrinkage: float = 0.0

    @classmethod
    def fit(cls, batches: Iterable[Tensor]) -> "PCA":
        """Fit to batches of shape (batch, ...) in one pass, in double precision."""
        count, total, moment = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            flat = batch.flatten(1).double()
            count += len(flat)
            total = total + flat.sum(0)
            moment = moment + flat.T @ flat
        mean = total / count
        variances, axes = torch.linalg.eigh(moment / count - mean.outer(mean))
        return cls(mean, axes.flip(1), variances.flip(0).clamp_min(0))

    def project(self, x: Tensor, dim: int) -> Tensor:
        """Project x of shape (batch, ...) onto the first ``dim`` principal axes."""
        axes = self.axes[:, :dim]
        flat = x.flatten(1).double() - self.mean
        return (flat @ axes @ axes.T + self.mean).view(x.shape).to(x.dtype)

    def squared_errors(self, x: Tensor) -> Tensor:
        """Squared error of the projection on the first d axes, for every d from 0 to D.

        Args:
            x: (batch, ...).

        Returns:
            Means over the coordinates, (batch, D + 1).
        """
        squares = ((x.flatten(1).double() - self.mean) @ self.axes).square()
        tails = squares.flip(1).cumsum(1).flip(1) / squares.shape[1]
        return torch.cat([tails, tails.new_zeros(len(tails), 1)], 1)

    def error_curve(self, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean squared error for every d from 0 to D, and half the width of its 95% interval."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            errors = self.squared_errors(batch)
            count += len(errors)
            total = total + errors.sum(0)
            squares = squares + errors.square().sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0) * count / max(count - 1, 1)
        return mean, 1.96 * (variance / count).sqrt()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of the Gaussian with (shrunk) full covariance, shape (batch,)."""
        flat = (x.flatten(1).double() - self.mean) @ self.axes
        variances = self._shrunk(self.shrinkage)
        return -0.5 * (flat.square() / variances + torch.log(2 * math.pi * variances)).sum(1)

    def shrink(self, valid: Iterable[Tensor]) -> "PCA":
        """Choose the shrinkage with the best likelihood on validation batches.

        With fewer images than a few times D the sample covariance is a poor Gaussian; a baseline
        that was left at that would be easy to beat. Its eigenvectors are those of the shrunk
        covariance too, so trying many costs nothing.
        """
        squares, count = torch.zeros(()), 0
        for batch in valid:
            projected = (batch.flatten(1).double() - self.mean) @ self.axes
            squares = squares + projected.square().sum(0)
            count += len(batch)

        def loss(shrinkage: float) -> float:
            variances = self._shrunk(shrinkage)
            return float((squares / count / variances + variances.log()).sum())

        choices = [0.0, *(10 ** (-exponent / 4) for exponent in range(24, 0, -1))]
        return PCA(self.mean, self.axes, self.variances, min(choices, key=loss))

    def _shrunk(self, shrinkage: float) -> Tensor:
        floor = torch.finfo(torch.float64).tiny
        isotropic = self.variances.mean()
        return ((1 - shrinkage) * self.variances + shrinkage * isotropic).clamp_min(floor)
