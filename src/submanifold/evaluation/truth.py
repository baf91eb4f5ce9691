"""A learned manifold and its density beside the true ones."""

from typing import Any

import numpy as np
import torch

from submanifold.data.synthetic import Manifold
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.manifold import Hierarchy, manifold_log_prob

GRID = 161


def compare_with_truth(
    hierarchy: Hierarchy, manifold: Manifold, test: np.ndarray, samples: np.ndarray
) -> dict[str, Any]:
    r"""Measure what is known exactly only where the data have a known density.

    Args:
        hierarchy: The model.
        manifold: What the data were drawn from.
        test: Points (N, D).
        samples: Points that the hierarchy generated on its manifold (M, D).

    Returns:
        Means with intervals, all but the distances in nats for an event:

        - ``nll`` and ``true_nll``: -log density on R^D of the model and of the truth;
        - ``divergence``: their difference at the same points, an estimate of KL(truth || model)
          that has lost most of the sampling error;
        - ``manifold_nll``: -log density on the learned manifold at the points' projections, where
          the dimension is the true one, and ``manifold_entropy``, its true value;
        - ``projection_distance``: between the learned and the true projection of a point;
        - ``sample_distance``: of a sample from the true manifold;
        - ``noise``: that of the data, in the same unit as the distances.

        The density on R^D is left out where the data have none, for lack of noise.
    """
    weight = next(hierarchy.parameters())
    x = torch.from_numpy(test).to(weight)
    with torch.no_grad():
        projected = hierarchy.project(x).double().cpu().numpy()
    found: dict[str, Any] = {
        "manifold_entropy": manifold.manifold_entropy,
        "projection_distance": _distance(projected, manifold.project(test)),
        "sample_distance": _distance(samples, manifold.project(samples)),
        "noise": manifold.noise,
    }
    if hierarchy.dim == manifold.dim:
        values = manifold_log_prob(hierarchy, x)[0].double().cpu().numpy()
        found["manifold_nll"] = mean_interval(-values)
    if manifold.has_density:
        nll, true = -per_event(hierarchy.log_prob, [x]), -manifold.log_prob(test)
        found |= {
            "nll": mean_interval(nll),
            "true_nll": mean_interval(true),
            "divergence": mean_interval(nll - true),
        }
    return found


def _distance(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    return mean_interval(np.linalg.norm(a - b, axis=1))


def picture(
    hierarchy: Hierarchy, manifold: Manifold, test: np.ndarray, samples: np.ndarray
) -> tuple[dict[str, Any], tuple[np.ndarray, ...] | None]:
    """Gather what :func:`submanifold.figures.manifold_figure` draws, in the manifold's view.

    Args:
        hierarchy: The model.
        manifold: What the data were drawn from.
        test: Points (N, D).
        samples: Points of the learned manifold (M, D).

    Returns:
        The points and their log-densities, and, where D = 2 and there is one, both densities on a
        grid: xs, ys, and the true and the learned log-density (rows, columns).
    """
    weight = next(hierarchy.parameters())
    x, view = torch.from_numpy(test).to(weight), manifold.view
    with torch.no_grad():
        projected = hierarchy.project(x).double().cpu().numpy()
    density = None
    if hierarchy.dim == manifold.dim:
        density = manifold_log_prob(hierarchy, x)[0].double().cpu().numpy()
    points = {
        "true_points": manifold.project(test) @ view,
        "true_density": manifold.manifold_log_prob(test),
        "learned_points": projected @ view,
        "learned_density": density,
        "samples": samples @ view,
        "points": test @ view,
        "projections": projected @ view,
    }
    on_grid = test.shape[1] == 2 and manifold.has_density
    return points, _grid(hierarchy, manifold, test) if on_grid else None


@torch.no_grad()
def _grid(hierarchy: Hierarchy, manifold: Manifold, test: np.ndarray) -> tuple[np.ndarray, ...]:
    middle, half = test.mean(0), 1.15 * np.abs(test - test.mean(0)).max()
    xs, ys = (np.linspace(m - half, m + half, GRID) for m in middle)
    points = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    learned = hierarchy.log_prob(torch.from_numpy(points).to(next(hierarchy.parameters())))
    shape = (GRID, GRID)
    return (
        xs,
        ys,
        manifold.log_prob(points).reshape(shape),
        learned.double().cpu().numpy().reshape(shape),
    )
