"""Figures of the dimension of a manifold and of the coordinates on it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm


def dimension_curves(
    curve: Mapping[str, Any], dim: int, first_order: Mapping[str, Any] | None = None,
    advised: int | None = None, unit: str = "pixels in [0, 1]",
) -> Figure:  # fmt: skip
    """Draw the squared error of projections over the dimension of the manifold.

    Args:
        curve: Result of :func:`submanifold.evaluation.reconstruction.error_curve`.
        dim: Dimension of the model, drawn as a vertical line.
        first_order: Result of :func:`submanifold.training.rotation.fit_rotation`.
        advised: Dimension to mark.
        unit: Unit of the data.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("encoder projection", curve["dims"], curve["mse"], {"marker": "."}),
        ("nearest projection", curve["nearest_dims"], curve["nearest_mse"], {"marker": "o"}),
        ("PCA", curve["dims"], curve["pca_mse"], {"color": "0.4", "linestyle": "--"}),
    ]
    if first_order is not None:
        look: dict[str, Any] = {"color": "C0", "linestyle": ":", "linewidth": 1}
        lines.append(("first-order estimate", first_order["dims"], first_order["mse"], look))
    for label, dims, errors, look in lines:
        points = [(d, e) for d, e in zip(dims, errors, strict=True) if e is not None and e > 0]
        if points:
            axes.plot(*np.transpose(points), label=label, **look)
    axes.axvline(dim, color="0.6", linestyle=":", linewidth=1)
    if advised is not None:
        axes.axvline(advised, color="C3", linewidth=1, label=f"recommended: d = {advised}")
    smallest = min(curve["mse"][:-1], default=1e-6)  # all dimensions reconstruct exactly
    axes.set(xscale="log", yscale="log", xlabel="dimension of the manifold",
             ylabel=f"mean squared error, {unit}")  # fmt: skip
    axes.set_ylim(bottom=max(smallest / 10, 1e-7))
    axes.grid(alpha=0.25, which="both")
    axes.legend()
    return figure


def latent_histogram(latents: np.ndarray) -> Figure:
    """Draw the histogram of coordinates (N, d) of 2,000 points, and the normal density."""
    values = np.asarray(latents[:2000], dtype=float).ravel()
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(-5, 5, 101)
    axes.hist(values.clip(-5, 5), edges.tolist(), density=True, alpha=0.6, label="coordinates u")
    axes.plot(edges, norm.pdf(edges), color="C3", label="N(0, 1)")
    axes.set_title(f"{latents.shape[0]:,} points in {latents.shape[1]:,} dimensions", fontsize=9)
    axes.legend(fontsize=8)
    return figure
