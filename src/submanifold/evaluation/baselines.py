"""Baselines: PCA and a Gaussian with full, shrunk covariance."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # submodules load on first use; scipy.stats takes half a second
import torch
from torch import Tensor

from submanifold.data.batches import Batches
from submanifold.data.events import Events, EventsLike
from submanifold.evaluation.intervals import MIN_GROUPS, Interval, mean_interval, plus_minus
from submanifold.evaluation.likelihood import per_event, to_bits_per_dim

PCA_BATCH_SIZE, MAX_BATCH_NUMBERS = 1024, 2**23
LARGEST_COVARIANCE = 6144
LEADING = 2048
MOST_NUMBERS = 2**27  # of events that PCA is fitted to: 1 GB
MEASURED = 512  # evenly spaced training and validation events, and test events of a brief run
PROJECTED = 64  # test events whose default and nearest projections are measured


@dataclass(frozen=True)
class PCA:
    """Principal components of flattened events in R^D, and a Gaussian (:ref:`theory-4`).

    Variances beyond those of the k axes are all equal to the mean of the rest (probabilistic PCA,
    Tipping & Bishop 1999).
    """

    mean: Tensor  # (D,)
    axes: Tensor  # as columns, (D, k) with k at most D and less than the number of events
    variances: Tensor  # (D,), decreasing
    shrinkage: float = 0.0  # weight of the isotropic covariance in the Gaussian, in [0, 1]

    @classmethod
    def fit(cls, events: np.ndarray) -> "PCA":
        """Fit scikit-learn's PCA to uint8 images or float vectors (N, ...), evenly spaced ones.

        It has all axes, or with more than 6,144 coordinates at most 2,048, by randomized SVD.
        """
        from sklearn import decomposition  # loads slowly

        chosen = evenly_spaced(events, MOST_NUMBERS // math.prod(events.shape[1:]))
        x = torch.cat([batch.flatten(1).double() for batch in pca_batches(chosen)]).numpy()
        count, dim = x.shape
        most = min(dim, count - 1)  # deviations from the mean span at most n - 1 dimensions
        if dim <= LARGEST_COVARIANCE:
            fitted = decomposition.PCA(most, svd_solver="covariance_eigh").fit(x)
        else:
            leading = min(LEADING, most)
            fitted = decomposition.PCA(leading, svd_solver="randomized", random_state=0).fit(x)
        scale = (count - 1) / count  # of the likelihood's estimate
        rest = np.full(dim - len(fitted.components_), scale * fitted.noise_variance_)
        variances = np.concatenate([scale * fitted.explained_variance_, rest])
        axes = torch.from_numpy(fitted.components_.T.copy())
        return cls(torch.from_numpy(fitted.mean_), axes, torch.from_numpy(variances))

    def project(self, x: Tensor, dim: int) -> Tensor:
        """Project x (batch, ...) onto the first `dim` principal axes."""
        axes = self.axes[:, :dim]
        flat = x.flatten(1).double() - self.mean
        return (flat @ axes @ axes.T + self.mean).view(x.shape).to(x.dtype)

    def squared_errors(self, x: Tensor) -> Tensor:
        """Compute mean squared errors with the first 0, ..., k axes, (batch, k + 1)."""
        return self._squares(x).flip(1).cumsum(1).flip(1) / len(self.mean)

    def error_curve(
        self, batches: Iterable[Tensor], groups: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Average :meth:`squared_errors`, (k + 1,), with the half-widths of 95% intervals.

        Over groups (N,), they are by the linearized variance of a ratio and Student's t, and None
        for fewer than 6 groups.
        """
        if groups is not None:
            return _mean_over_groups(map(self.squared_errors, batches), groups)
        count, mean, square = _moments(map(self.squared_errors, batches))
        variance = (square - mean.square()).clamp_min(0) / max(count - 1, 1)
        return mean, 1.96 * variance.sqrt()

    def explaining(self, fraction: float) -> int:
        """Return the smallest number of axes that explain this fraction of the variance."""
        explained = self.variances.cumsum(0) / self.variances.sum()
        return min(int((explained < fraction).sum()) + 1, self.axes.shape[1])

    def hotelling(self, x: Tensor, dim: int) -> Tensor:
        """Compute Hotelling's T^2 of the first `dim` coordinates, (batch,)."""
        flat = (x.flatten(1).double() - self.mean) @ self.axes[:, :dim]
        return (flat.square() / self.variances[:dim]).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-density in nats of the Gaussian with shrunk covariance, (batch,)."""
        variances = self.shrunk_variances()
        squares = self._all_squares(x) / variances
        return -0.5 * (squares.sum(1) + torch.log(2 * math.pi * variances).sum())

    def shrunk_variances(self) -> Tensor:
        """Return the variances (D,) of the Gaussian along the axes."""
        isotropic = self.variances.mean()
        shrunk = (1 - self.shrinkage) * self.variances + self.shrinkage * isotropic
        return shrunk.clamp_min(torch.finfo(torch.float64).tiny)

    def shrink(self, valid: np.ndarray) -> "PCA":
        """Choose the shrinkage that maximizes the likelihood of validation events (N, ...)."""
        _, square, _ = _moments(map(self._all_squares, pca_batches(valid)))

        def loss(shrunk: PCA) -> float:
            variances = shrunk.shrunk_variances()
            return float((square / variances + variances.log()).sum())

        weights = [0.0, *(10 ** (-exponent / 4) for exponent in range(24, 0, -1)), 0.75, 0.9, 1.0]
        return min((replace(self, shrinkage=weight) for weight in weights), key=loss)

    def _squares(self, x: Tensor) -> Tensor:
        """Return squared coordinates and squared distances from their span, (batch, k + 1)."""
        flat = x.flatten(1).double() - self.mean
        squares = (flat @ self.axes).square()
        rest = (flat.square().sum(1) - squares.sum(1)).clamp_min(0)
        is_all = len(self.mean) == self.axes.shape[1]
        return torch.cat([squares, rest[:, None] * (not is_all)], 1)

    def _all_squares(self, x: Tensor) -> Tensor:
        """Return squared coordinates (batch, D); those beyond the first k are their mean."""
        squares, missing = self._squares(x), len(self.mean) - self.axes.shape[1]
        rest = squares[:, -1:] / max(missing, 1)
        return torch.cat([squares[:, :-1], rest.expand(-1, missing)], 1)


def _moments(
    batches: Iterable[Tensor], second: Callable[[Tensor], Tensor] = lambda x: x.square().sum(0)
) -> tuple[int, Tensor, Tensor]:
    count, total, moment = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        count += len(batch)
        total = total + batch.sum(0)
        moment = moment + second(batch)
    return count, total / count, moment / count


def _mean_over_groups(
    batches: Iterable[Tensor], groups: np.ndarray
) -> tuple[Tensor, Tensor | None]:
    inverse = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    (members, counts), sums, start = map(torch.from_numpy, inverse), torch.zeros(()), 0
    for batch in batches:
        of_batch = members[start : start + len(batch)]
        sums = sums + batch.new_zeros(len(counts), batch.shape[1]).index_add_(0, of_batch, batch)
        start += len(batch)
    mean, count = sums.sum(0) / start, len(counts)
    if count < MIN_GROUPS:
        return mean, None
    squares = (sums - counts[:, None] * mean).square().sum(0)
    error = (squares * count / (count - 1)).sqrt() / start
    return mean, float(scipy.stats.t.ppf(0.975, count - 1)) * error


def pca_batches(events: np.ndarray) -> Iterator[Tensor]:
    """Iterate over events (N, ...) in batches of at most 64 MB in double precision."""
    size = max(1, MAX_BATCH_NUMBERS // math.prod(events.shape[1:]))
    return (x for x, _ in Batches(events, min(PCA_BATCH_SIZE, size)))


def fit_baselines(train: Events, valid: Events, test: Events) -> tuple[dict[str, Any], np.ndarray]:
    """Fit PCA and the Gaussian to uint8 images or float vectors (N, ...) and evaluate them.

    In the ``baselines``, ``pca_mse`` are mean squared errors with the first 0, 1, ... axes.
    ``measured`` are those of 512 evenly spaced test events, and ``projected`` of
    :func:`projected_events`. ``pca`` are the mean and
    up to 2,048 axes as rows, float16 (1 + axes, D), for a file.
    """
    pca = PCA.fit(train.x).shrink(valid.x)
    bits = to_bits_per_dim(per_event(pca.log_prob, pca_batches(test.x)), test.x)

    def errors(events: Events) -> dict[str, Any]:
        mse, half_width = pca.error_curve(pca_batches(events.x), events.groups)
        half_widths = None if half_width is None else half_width.tolist()
        counts = {} if events.groups is None else {"groups": len(np.unique(events.groups))}
        return {"pca_mse": mse.tolist(), "pca_mse_half_width": half_widths, **counts}

    baselines = errors(test) | {
        "measured": errors(evenly_spaced(test, MEASURED)),
        "projected": errors(test[projected_events(len(test))]),
        "gaussian": {"bits_per_dim": mean_interval(bits, test.groups), "shrinkage": pca.shrinkage},
        "n_train": len(train),
    }
    axes = torch.cat([pca.mean[:, None], pca.axes[:, :LEADING]], 1).T
    return baselines, axes.half().cpu().numpy()


def projected_events(total: int) -> np.ndarray:
    """Return the numbers of 64 of a total of events, evenly spaced among 512 of them."""
    return evenly_spaced(evenly_spaced(np.arange(total), MEASURED), PROJECTED)


def evenly_spaced(values: EventsLike, count: int) -> Any:
    """Select at most ``count`` entries of an array, or events, at equal distances."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


def pca_projection(stored: np.ndarray, x: Tensor, dim: int) -> Tensor | None:
    """Project x (batch, ...) onto `dim` axes of :func:`fit_baselines`; None if there are fewer."""
    if dim >= stored.shape[1]:
        return x
    if dim >= len(stored):
        return None
    mean, axes = (torch.tensor(rows).to(x) for rows in (stored[0], stored[1 : 1 + dim]))
    return ((x.flatten(1) - mean) @ axes.T @ axes + mean).view(x.shape)


def pca_error(errors: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """Look up the ``mse`` of PCA with `dim` axes, or ``why`` it is missing.

    ``errors`` are the baselines, or those of a subset.
    """
    fitted = len(errors["pca_mse"]) - 1
    if dim > fitted:
        return {"dim": dim, "why": f"only the {fitted:,} leading axes are fitted"}
    value, half_widths = errors["pca_mse"][dim], errors["pca_mse_half_width"]
    mse: Interval = {"value": value, "low": None, "high": None}
    mse |= {} if half_widths is None else plus_minus(value, half_widths[dim])
    return {"dim": dim, "mse": mse | {k: errors[k] for k in ("groups",) if k in errors}}
