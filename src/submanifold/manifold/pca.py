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

    def squared_errors(self, x: Tensor, dim: int) -> Tensor:
        """Mean squared error of each projection over its D coordinates, shape (batch,)."""
        flat = x.flatten(1).double() - self.mean
        return (flat @ self.axes[:, dim:]).square().sum(1) / flat.shape[1]

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
