"""The baselines that every number stands beside: PCA and the full-covariance Gaussian."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # whose parts load where they are used; its stats take half a second
import torch
from torch import Tensor

from submanifold.data.batches import Batches
from submanifold.evaluation.intervals import FEWEST_GROUPS, mean_interval, plus_minus
from submanifold.evaluation.likelihood import per_event, to_bits_per_dim

BATCH, BATCH_NUMBERS = 1024, 2**23
LARGEST_COVARIANCE = 6144
LEADING, SPARE, PASSES = 2048, 16, 4
MOST_FITTED = 16384


@dataclass(frozen=True)
class PCA:
    """Mean, principal axes and variances of flat data in R^D (method.md 4).

    Attributes:
        mean: (D,).
        axes: (D, k), one axis a column, by falling variance; k is D, or the number of leading axes.
        variances: (D,), falling; beyond the leading axes they are all the mean of what is left
            (Tipping & Bishop 1999).
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

    @classmethod
    def fit_leading(cls, batches: Iterable[Tensor], count: int) -> "PCA":
        """Fit the leading axes alone, by subspace iteration, with no D x D matrix.

        The last are less exact than the first (Halko, Martinsson & Tropp 2011). It takes five
        passes over the batches, in single precision.
        """
        rows, mean, square = _moments(batch.flatten(1).double() for batch in batches)
        total = (square - mean.square()).sum()
        size = min(count + SPARE, len(mean))
        generator = torch.Generator(mean.device).manual_seed(0)
        image = torch.randn(len(mean), size, generator=generator, device=mean.device)
        for _ in range(PASSES):
            basis = torch.linalg.qr(image).Q
            image = torch.zeros_like(basis)
            for batch in batches:
                flat = (batch.flatten(1) - mean).float()
                image.addmm_(flat.T, flat @ basis)
        values, vectors = torch.linalg.eigh((basis.T @ image).double() / rows)
        axes = torch.linalg.qr(basis.double() @ vectors.flip(1)[:, :count]).Q
        leading = values.flip(0)[:count].clamp_min(0)
        rest = (total - leading.sum()).clamp_min(0) / max(len(mean) - count, 1)
        return cls(mean, axes, torch.cat([leading, rest.expand(len(mean) - count)]))

    def project(self, x: Tensor, dim: int) -> Tensor:
        """Project x of shape (batch, ...) onto the first ``dim`` principal axes."""
        axes = self.axes[:, :dim]
        flat = x.flatten(1).double() - self.mean
        return (flat @ axes @ axes.T + self.mean).view(x.shape).to(x.dtype)

    def squared_errors(self, x: Tensor) -> Tensor:
        """Squared error of the projection on the first d axes, for every d from 0 to k.

        It is the mean over the coordinates, (batch, k + 1).
        """
        squares, left = self._squares(x)
        tails = torch.cat([squares, left[:, None]], 1).flip(1).cumsum(1).flip(1)
        return tails / len(self.mean)

    def error_curve(
        self, batches: Iterable[Tensor], groups: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mean squared error for every d from 0 to k, and half the width of its 95% interval.

        Where the images have groups, (N,), its variance is the one over groups (the linearized
        variance of a ratio), with Student's t; for fewer than six there is no interval.
        """
        if groups is not None:
            return _mean_over_groups(map(self.squared_errors, batches), groups)
        count, mean, square = _moments(map(self.squared_errors, batches))
        variance = (square - mean.square()).clamp_min(0) / max(count - 1, 1)
        return mean, 1.96 * variance.sqrt()

    def explaining(self, share: float) -> int:
        """The fewest axes that have this share of the variance; all of them if they have less."""
        explained = self.variances.cumsum(0) / self.variances.sum()
        return min(int((explained < share).sum()) + 1, self.axes.shape[1])

    def hotelling(self, x: Tensor, dim: int) -> Tensor:
        """Hotelling's T^2 within the first ``dim`` axes, (batch,): squares over variances."""
        flat = (x.flatten(1).double() - self.mean) @ self.axes[:, :dim]
        return (flat.square() / self.variances[:dim]).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of the Gaussian with (shrunk) full covariance, shape (batch,)."""
        variances = self.shrunk_variances()
        return -0.5 * (
            (self._spread(x) / variances).sum(1) + torch.log(2 * math.pi * variances).sum()
        )

    def shrunk_variances(self) -> Tensor:
        """Variances along the axes of the Gaussian with (shrunk) covariance, (D,)."""
        return self._shrunk(self.shrinkage)

    def shrink(self, valid: Iterable[Tensor]) -> "PCA":
        """Choose the shrinkage with the best likelihood on validation batches.

        With fewer images than a few times D the sample covariance is a poor Gaussian, easy to beat.
        The shrunk covariance has the same eigenvectors, so trying many costs nothing.
        """
        _, square, _ = _moments(map(self._spread, valid))

        def loss(shrinkage: float) -> float:
            variances = self._shrunk(shrinkage)
            return float((square / variances + variances.log()).sum())

        choices = [0.0, *(10 ** (-exponent / 4) for exponent in range(24, 0, -1))]
        return PCA(self.mean, self.axes, self.variances, min(choices, key=loss))

    def _squares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squares of the coordinates along the axes, (batch, k), and the sum of the others'."""
        flat = x.flatten(1).double() - self.mean
        squares = (flat @ self.axes).square()
        if len(self.mean) == self.axes.shape[1]:
            return squares, squares.new_zeros(len(squares))
        return squares, (flat.square().sum(1) - squares.sum(1)).clamp_min(0)

    def _spread(self, x: Tensor) -> Tensor:
        """The same as (batch, D): what is left is shared evenly, for its variances are alike."""
        squares, left = self._squares(x)
        others = len(self.mean) - self.axes.shape[1]
        return torch.cat([squares, (left / max(others, 1))[:, None].expand(-1, others)], 1)

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


def _mean_over_groups(
    batches: Iterable[Tensor], groups: np.ndarray
) -> tuple[Tensor, Tensor | None]:
    """Mean of each column, and half the width of its 95% interval over groups of rows."""
    _, numbers = np.unique(groups, return_inverse=True)
    members, counts = torch.from_numpy(numbers), torch.from_numpy(np.bincount(numbers))
    sums, start = torch.zeros(()), 0
    for rows in batches:
        of_rows = members[start : start + len(rows)]
        sums = sums + rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, of_rows, rows)
        start += len(rows)
    mean, number = sums.sum(0) / start, len(counts)
    if number < FEWEST_GROUPS:
        return mean, None
    squares = (sums - counts[:, None] * mean).square().sum(0)
    error = (squares * number / (number - 1)).sqrt() / start
    return mean, float(scipy.stats.t.ppf(0.975, number - 1)) * error


def rows_of(images: np.ndarray) -> Batches:
    """Batches that stay small in double precision, however many coordinates there are."""
    return Batches(images, min(BATCH, max(1, BATCH_NUMBERS // math.prod(images.shape[1:]))))


def fit_gaussian(train: np.ndarray, valid: np.ndarray) -> tuple[PCA, int]:
    """Fit PCA to uint8 images or float vectors (n, ...), and shrink it by validation data.

    Of more than 6,144 coordinates the 2,048 leading axes are fitted, to at most 16,384 images that
    are spread evenly.

    Returns:
        The PCA, and to how many images it was fitted.
    """
    dim = math.prod(train.shape[1:])
    if dim <= LARGEST_COVARIANCE:
        return PCA.fit(rows_of(train)).shrink(rows_of(valid)), len(train)
    some = train[:: math.ceil(len(train) / MOST_FITTED)]
    pca = PCA.fit_leading(rows_of(some), min(LEADING, len(some)))
    return pca.shrink(rows_of(valid)), len(some)


def fit_baselines(
    train: np.ndarray, valid: np.ndarray, test: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Fit PCA and the Gaussian to uint8 images or float vectors (n, ...), and test them.

    Args:
        train: What they are fitted to.
        valid: What the Gaussian's shrinkage is chosen by.
        test: What they are tested on.
        groups: Of test images, (N,), where they are not independent of each other: intervals are
            over groups.

    Returns:
        ``pca_mse``: mean squared error on the test data with the first d axes, for d from 0 to D or
        the number of leading axes (:func:`fit_gaussian`), and ``pca_mse_half_width`` of its 95%
        interval, None for too few groups; ``groups``: their number, where there are any;
        ``gaussian``: bits per dimension and ``shrinkage``, the best on validation data;
        ``n_train``: to how many images they were fitted.
    """
    pca, fitted = fit_gaussian(train, valid)
    bits = to_bits_per_dim(per_event(pca.log_prob, rows_of(test)), test)
    mse, half_width = pca.error_curve(rows_of(test), groups)
    counted = {} if groups is None else {"groups": len(np.unique(groups))}
    return {
        "pca_mse": mse.tolist(),
        "pca_mse_half_width": None if half_width is None else half_width.tolist(),
        **counted,
        "gaussian": {"bits_per_dim": mean_interval(bits, groups), "shrinkage": pca.shrinkage},
        "n_train": fitted,
    }


def pca_error(baselines: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """The ``mse`` of PCA with ``dim`` axes, or ``why`` there is none: of :func:`fit_baselines`."""
    known = len(baselines["pca_mse"]) - 1
    if dim > known:
        return {"dim": dim, "why": f"only the {known:,} leading axes are fitted"}
    mse, half_widths = baselines["pca_mse"][dim], baselines["pca_mse_half_width"]
    if half_widths is None:
        interval: dict[str, Any] = {"value": mse, "low": None, "high": None}
    else:
        interval = plus_minus(mse, half_widths[dim])
    counted = {"groups": baselines["groups"]} if "groups" in baselines else {}
    return {"dim": dim, "mse": {**interval, **counted}}
