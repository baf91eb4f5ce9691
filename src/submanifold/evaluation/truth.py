"""A learned manifold and its density beside the true ones."""

from typing import Any

import numpy as np
import torch

from submanifold.data.synthetic import Manifold
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.models import Model, manifold_log_prob

GRID = 161


def against_truth(
    hierarchy: Model, truth: Manifold, test: np.ndarray, samples: np.ndarray
) -> dict[str, Any]:
    """Measure what is known exactly only where the data have a known density.

    Of test points (N, D), and samples (M, D) that the hierarchy generated on its manifold.

    Returns:
        Means with intervals, all but the distances in nats for an event:

        - ``nll``, ``true_nll``: -log density on R^D of the model and of the truth, and their
          ``divergence``: the difference at the same points, an estimate of KL(truth || model)
          without most of the sampling error; left out where the data have no noise, or the model
          no density on R^D;
        - ``manifold_nll``: -log density on the learned manifold at the points' projections, where
          the dimension is the true one; ``manifold_entropy``, its true value; and
          ``manifold_divergence``, how far it is above the truth's at their true projections;
        - ``projection_distance``: between the learned and the true projection of a point;
          ``sample_distance``: of a sample from the true manifold; and the data's ``noise``.
    """
    x, projected, log_prob = _learned(hierarchy, truth, test)
    found: dict[str, Any] = {
        "manifold_entropy": truth.manifold_entropy,
        "projection_distance": _distance(projected, truth.project(test)),
        "sample_distance": _distance(samples, truth.project(samples)),
        "noise": truth.noise,
    }
    if log_prob is not None:
        found["manifold_nll"] = mean_interval(-log_prob)
        above = truth.manifold_log_prob(test) - log_prob
        found["manifold_divergence"] = mean_interval(above)
    if truth.has_density and hierarchy.has_density:
        nll, true_nll = -per_event(hierarchy.log_prob, [x]), -truth.log_prob(test)
        found |= {
            "nll": mean_interval(nll),
            "true_nll": mean_interval(true_nll),
            "divergence": mean_interval(nll - true_nll),
        }
    return found


def _distance(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    return mean_interval(np.linalg.norm(a - b, axis=1))


def manifold_picture(
    hierarchy: Model, truth: Manifold, test: np.ndarray, samples: np.ndarray
) -> tuple[dict[str, Any], tuple[np.ndarray, ...] | None]:
    """Gather what :func:`submanifold.plots.manifold_figure` draws, in the truth's view.

    Returns:
        The points and their log-densities, and, where D = 2 and there is one, both densities on a
        grid: xs, ys, and the true and the learned log-density (rows, columns).
    """
    _, projected, log_prob = _learned(hierarchy, truth, test)
    points = {
        "true_points": truth.project(test),
        "learned_points": projected,
        "samples": samples,
        "points": test,
        "projections": projected,
    }
    densities = {"true_density": truth.manifold_log_prob(test), "learned_density": log_prob}
    picture = {name: each @ truth.view for name, each in points.items()} | densities
    on_grid = test.shape[1] == 2 and truth.has_density and hierarchy.has_density
    return picture, _grid(hierarchy, truth, test) if on_grid else None


@torch.no_grad()
def _learned(
    hierarchy: Model, truth: Manifold, test: np.ndarray
) -> tuple[torch.Tensor, np.ndarray, np.ndarray | None]:
    """Points on the model's device, their projections, and where d is true their log-density."""
    x = torch.from_numpy(test).to(next(hierarchy.parameters()))
    projected = hierarchy.project(x).double().cpu().numpy()
    if hierarchy.dim != truth.dim:
        return x, projected, None
    return x, projected, manifold_log_prob(hierarchy, x)[0].double().cpu().numpy()


@torch.no_grad()
def _grid(hierarchy: Model, truth: Manifold, test: np.ndarray) -> tuple[np.ndarray, ...]:
    middle, half = test.mean(0), 1.15 * np.abs(test - test.mean(0)).max()
    xs, ys = (np.linspace(m - half, m + half, GRID) for m in middle)
    points = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    x = torch.from_numpy(points).to(next(hierarchy.parameters()))
    densities = truth.log_prob(points), hierarchy.log_prob(x).double().cpu().numpy()
    return xs, ys, *(each.reshape(GRID, GRID) for each in densities)
