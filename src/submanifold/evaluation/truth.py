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

    Distances are those of projections from the true projections, and of samples from the manifold.
    Densities on R^D, or on manifolds of equal dimensions, are in nats.
    """
    x, projected, log_prob = _on_manifold(model, truth, test)
    values = {"projection_distance": np.linalg.norm(projected - truth.project(test), axis=1)}
    values["sample_distance"] = np.linalg.norm(samples - truth.project(samples), axis=1)
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
    """Compute the arguments of :func:`submanifold.plots.manifolds.manifold_figure` and its grid."""
    x, projected, log_prob = _on_manifold(model, truth, test)
    arrays = {
        "true_points": truth.project(test),
        "learned_points": projected,
        "samples": samples,
        "points": test,
        "projections": projected,
    }
    picture: dict[str, Any] = {name: points @ truth.view for name, points in arrays.items()}
    picture |= {"true_density": truth.manifold_log_prob(test), "learned_density": log_prob}
    if test.shape[1] != 2 or not (truth.has_density and model.has_density):
        return picture, None
    center = test.mean(0)
    half = 1.15 * np.abs(test - center).max()
    xs, ys = (np.linspace(c - half, c + half, GRID) for c in center)
    grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    densities = truth.log_prob(grid), model.log_prob(torch.from_numpy(grid).to(x)).double().cpu()
    return picture, (xs, ys, *(np.asarray(nats).reshape(GRID, GRID) for nats in densities))


@torch.no_grad()
def _on_manifold(
    model: Model, truth: Manifold, test: np.ndarray
) -> tuple[torch.Tensor, np.ndarray, np.ndarray | None]:
    """Return x, projections and log-densities in nats there, None for another dimension."""
    x = torch.from_numpy(test).to(next(model.parameters()))
    projected = model.encoder_projection(x).double().cpu().numpy()
    if model.dim != truth.dim:
        return x, projected, None
    return x, projected, manifold_density(model, x).log_prob.double().cpu().numpy()
