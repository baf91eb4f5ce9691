"""The baselines that every number stands beside: PCA and the full-covariance Gaussian."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import Batches
from submanifold.evaluation.intervals import mean_interval, plus_minus
from submanifold.evaluation.likelihood import per_event, to_bits_per_dim

BATCH = 1024
LARGEST_COVARIANCE = 6144


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

        It is the mean over the coordinates, (batch, D + 1).
        """
        squares = ((x.flatten(1).double() - self.mean) @ self.axes).square()
        tails = squares.flip(1).cumsum(1).flip(1) / squares.shape[1]
        return torch.cat([tails, tails.new_zeros(len(tails), 1)], 1)

    def error_curve(self, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean squared error for every d from 0 to D, and half the width of its 95% interval."""
        count, mean, square = _moments(map(self.squared_errors, batches))
        variance = (square - mean.square()).clamp_min(0) / max(count - 1, 1)
        return mean, 1.96 * variance.sqrt()

    def explaining(self, share: float) -> int:
        """The fewest axes that have this share of the variance."""
        explained = self.variances.cumsum(0) / self.variances.sum()
        return int((explained < share).sum()) + 1

    def hotelling(self, x: Tensor, dim: int) -> Tensor:
        """Hotelling's T^2 within the first ``dim`` axes, (batch,): squares over variances."""
        flat = (x.flatten(1).double() - self.mean) @ self.axes[:, :dim]
        return (flat.square() / self.variances[:dim]).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of the Gaussian with (shrunk) full covariance, shape (batch,)."""
        flat = (x.flatten(1).double() - self.mean) @ self.axes
        variances = self.shrunk_variances()
        return -0.5 * (flat.square() / variances + torch.log(2 * math.pi * variances)).sum(1)

    def shrunk_variances(self) -> Tensor:
        """Variances along the axes of the Gaussian with (shrunk) covariance, (D,)."""
        return self._shrunk(self.shrinkage)

    def shrink(self, valid: Iterable[Tensor]) -> "PCA":
        """Choose the shrinkage with the best likelihood on validation batches.

        With fewer images than a few times D the sample covariance is a poor Gaussian, easy to beat.
        The shrunk covariance has the same eigenvectors, so trying many costs nothing.
        """
        _, _, square = _moments((x.flatten(1).double() - self.mean) @ self.axes for x in valid)

        def loss(shrinkage: float) -> float:
            variances = self._shrunk(shrinkage)
            return float((square / variances + variances.log()).sum())

        choices = [0.0, *(10 ** (-exponent / 4) for exponent in range(24, 0, -1))]
        return PCA(self.mean, self.axes, self.variances, min(choices, key=loss))

    def _shrunk(self, shrinkage: float) -> Tensor:
        isotropic = self.variances.mean()
        mixed = (1 - shrinkage) * self.variances + shrinkage * isotropic
        return mixed.clamp_min(torch.finfo(torch.float64).tiny)


def _moments(batches: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Count of rows, and means of each column and of its square."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for rows in batches:
        count += len(rows)
        total = total + rows.sum(0)
        squares = squares + rows.square().sum(0)
    return count, total / count, squares / count


def fit_baselines(train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Fit PCA and the full Gaussian to uint8 images or float vectors (n, ...), and test them.

    Returns:
        ``pca_mse``: mean squared error on the test data with the first d axes, for d from 0 to D,
        and ``pca_mse_half_width`` of its 95% interval; ``gaussian``: bits per dimension and
        ``shrinkage``, the best on validation data; ``n_train``; or ``why`` they were not fitted.
    """
    dim = int(np.prod(train.shape[1:]))
    if dim > LARGEST_COVARIANCE:
        return {"why": f"not fitted: a covariance of {dim:,} dimensions takes too long"}
    pca = PCA.fit(Batches(train, BATCH)).shrink(Batches(valid, BATCH))
    bits = to_bits_per_dim(per_event(pca.log_prob, Batches(test, BATCH)), test)
    mse, half_width = pca.error_curve(Batches(test, BATCH))
    return {
        "pca_mse": mse.tolist(),
        "pca_mse_half_width": half_width.tolist(),
        "gaussian": {"bits_per_dim": mean_interval(bits), "shrinkage": pca.shrinkage},
        "n_train": len(train),
    }


def pca_error(baselines: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """The ``mse`` of PCA with ``dim`` axes, or ``why`` there is none: of :func:`fit_baselines`."""
    if "why" in baselines:
        return {"dim": dim, "why": baselines["why"]}
    mse, half_width = baselines["pca_mse"][dim], baselines["pca_mse_half_width"][dim]
    return {"dim": dim, "mse": plus_minus(mse, half_width)}
