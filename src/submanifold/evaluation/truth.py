"""Comparison of a learned manifold and its density with the known ones of synthetic data."""

from typing import Any

import numpy as np
import torch

from submanifold.data.synthetic import Manifold
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.models import Model, manifold_density

GRID = 161


def against_truth(
    model: Model, truth: Manifold, test: np.ndarray, samples: np.ndarray
) -> dict[str, Any]:
    """Compare a model in double precision with the known manifold and density of synthetic data.

    Test points are (N, D), samples of the model (M, D).

    Returns:
        Intervals of the distances ``projection_distance`` of the encoder from the true projection
        and ``sample_distance`` of samples from the manifold; and in nats, for densities on R^D, of
        ``nll``, ``true_nll`` and their difference ``divergence``; for equal dimensions, of
        ``manifold_nll`` on the learned manifold and ``manifold_divergence``. Also the ``noise`` of
        the data and ``manifold_entropy``, the true value of ``manifold_nll``.
    """
    x = torch.from_numpy(test).to(next(model.parameters()))
    values = {
        "projection_distance": np.linalg.norm(_project(model, x) - truth.project(test), axis=1),
        "sample_distance": np.linalg.norm(samples - truth.project(samples), axis=1),
    }
    log_prob = _manifold_log_prob(model, truth, x)
    if log_prob is not None:
        values["manifold_nll"] = -log_prob
        values["manifold_divergence"] = truth.manifold_log_prob(test) - log_prob
    if truth.has_density and model.has_density:
        true_log_prob = truth.log_prob(test)
        values["true_nll"] = -true_log_prob
        values["nll"] = -per_event(model.log_prob, [x])
        values["divergence"] = values["nll"] + true_log_prob
    intervals = {name: mean_interval(of_points) for name, of_points in values.items()}
    return {**intervals, "manifold_entropy": truth.manifold_entropy, "noise": truth.noise}


@torch.no_grad()
def manifold_picture(
    model: Model, truth: Manifold, test: np.ndarray, samples: np.ndarray
) -> tuple[dict[str, Any], tuple[np.ndarray, ...] | None]:
    """Compute the arguments of :func:`submanifold.plots.manifolds.manifold_figure`.

    Returns:
        Points in the view of the truth and their log-densities; and for D = 2, where both densities
        exist, x and y coordinates of a grid and the true and the learned log-density on it.
    """
    x = torch.from_numpy(test).to(next(model.parameters()))
    projected = _project(model, x)
    arrays = {"true_points": truth.project(test), "learned_points": projected, "samples": samples,
              "points": test, "projections": projected}  # fmt: skip
    picture: dict[str, Any] = {name: points @ truth.view for name, points in arrays.items()}
    picture["true_density"] = truth.manifold_log_prob(test)
    picture["learned_density"] = _manifold_log_prob(model, truth, x)
    if test.shape[1] != 2 or not (truth.has_density and model.has_density):
        return picture, None
    center = test.mean(0)
    half = 1.15 * np.abs(test - center).max()
    xs, ys = (np.linspace(c - half, c + half, GRID) for c in center)
    grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    log_prob = model.log_prob(torch.from_numpy(grid).to(x)).double().cpu().numpy()
    return picture, (xs, ys, *(x.reshape(GRID, GRID) for x in (truth.log_prob(grid), log_prob)))


@torch.no_grad()
def _project(model: Model, x: torch.Tensor) -> np.ndarray:
    return model.encoder_projection(x).double().cpu().numpy()


@torch.no_grad()
def _manifold_log_prob(model: Model, truth: Manifold, x: torch.Tensor) -> np.ndarray | None:
    """Log-density in nats on the learned manifold, (N,); None for another dimension."""
    if model.dim != truth.dim:
        return None
    return manifold_density(model, x).log_prob.double().cpu().numpy()
