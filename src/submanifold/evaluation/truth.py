"""Comparison of a learned manifold and its density with the known ones of synthetic data."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from submanifold.data.synthetic import Manifold
from submanifold.evaluation.intervals import Interval, mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.models import Model, on_manifold

GRID = 161


@dataclass(frozen=True)
class TruthComparison:
    """A model, the true manifold, test points (N, D) and samples (M, D)."""

    model: Model
    truth: Manifold
    test: np.ndarray
    samples: np.ndarray

    @cached_property
    def x(self) -> torch.Tensor:
        """Test points on the model's device."""
        return torch.from_numpy(self.test).to(next(self.model.parameters()))

    @cached_property
    @torch.no_grad()
    def projected(self) -> np.ndarray:
        """Learned projections of the test points, (N, D)."""
        return self.model.project(self.x).double().cpu().numpy()

    @cached_property
    @torch.no_grad()
    def manifold_log_prob(self) -> np.ndarray | None:
        """Log-density in nats on the learned manifold, (N,); None for another dimension."""
        if self.model.dim != self.truth.dim:
            return None
        return on_manifold(self.model, self.x).log_prob.double().cpu().numpy()

    @cached_property
    def has_densities(self) -> bool:
        """Whether the truth and the model have a density on R^D."""
        return self.truth.has_density and self.model.has_density

    @cached_property
    def nll(self) -> np.ndarray:
        """Negative log-density in nats of the model on R^D, (N,)."""
        return -per_event(self.model.log_prob, [self.x])


def nll(comparison: TruthComparison) -> Interval | None:
    """Compute the negative log-density in nats on R^D; None for data without noise."""
    return mean_interval(comparison.nll) if comparison.has_densities else None


def divergence(comparison: TruthComparison) -> Interval | None:
    """Estimate KL(truth || model) in nats from log-density differences at the test points."""
    if not comparison.has_densities:
        return None
    return mean_interval(comparison.nll + comparison.truth.log_prob(comparison.test))


def manifold_divergence(comparison: TruthComparison) -> Interval | None:
    """Estimate the divergence of the densities on the manifolds in nats, at the projections."""
    log_prob = comparison.manifold_log_prob
    if log_prob is None:
        return None
    return mean_interval(comparison.truth.manifold_log_prob(comparison.test) - log_prob)


def projection_distance(comparison: TruthComparison) -> Interval:
    """Compute the distance between the learned and the true projection of test points."""
    return _distance(comparison.projected, comparison.truth.project(comparison.test))


def sample_distance(comparison: TruthComparison) -> Interval:
    """Compute the distance of samples from the true manifold."""
    return _distance(comparison.samples, comparison.truth.project(comparison.samples))


def _distance(a: np.ndarray, b: np.ndarray) -> Interval:
    return mean_interval(np.linalg.norm(a - b, axis=1))


@torch.no_grad()
def manifold_picture(
    model: Model, truth: Manifold, test: np.ndarray, samples: np.ndarray
) -> tuple[dict[str, Any], tuple[np.ndarray, ...] | None]:
    """Compute the arguments of :func:`submanifold.plots.manifolds.manifold_figure`.

    Returns:
        Points in the view of the truth and their log-densities; and for D = 2, where both densities
        exist, x and y coordinates of a grid and the true and the learned log-density on it.
    """
    comparison = TruthComparison(model, truth, test, samples)
    points = {
        "true_points": truth.project(test),
        "learned_points": comparison.projected,
        "samples": samples,
        "points": test,
        "projections": comparison.projected,
    }
    picture = {name: each @ truth.view for name, each in points.items()}
    picture["true_density"] = truth.manifold_log_prob(test)
    picture["learned_density"] = comparison.manifold_log_prob
    if test.shape[1] != 2 or not comparison.has_densities:
        return picture, None
    center = test.mean(0)
    half = 1.15 * np.abs(test - center).max()
    xs, ys = (np.linspace(c - half, c + half, GRID) for c in center)
    grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    log_prob = model.log_prob(torch.from_numpy(grid).to(comparison.x)).double().cpu().numpy()
    densities = truth.log_prob(grid), log_prob
    return picture, (xs, ys, *(each.reshape(GRID, GRID) for each in densities))
