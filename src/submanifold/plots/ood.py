"""Figures of out-of-distribution (OOD) detection."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

COLORS = {"normal": "C0", "ood": "C3"}


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw ROC curves with a logarithmic false-positive rate.

    Args:
        curves: False-positive and true-positive rates by score.
    """
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, (false, true)) in enumerate(curves.items()):
        axes.plot(np.maximum(false, 1e-4), true, "-" if number < 10 else "--", label=name, lw=1.2)
    axes.set(
        xscale="log", xlim=(1e-4, 1), xlabel="false-positive rate", ylabel="true-positive rate"
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def score_histograms(scores: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw histograms of each score for normal and for out-of-distribution images.

    Args:
        scores: Values for ``normal`` and ``ood`` images by score.
    """
    columns = 3
    rows = -(-len(scores) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, kinds) in zip(grid, scores.items(), strict=False):
        finite = {kind: values[np.isfinite(values)] for kind, values in kinds.items()}
        low, high = np.quantile(np.concatenate(list(finite.values())), [0.005, 0.995])
        bins = np.linspace(low, high if high > low else low + 1, 50)
        for kind, values in finite.items():
            axes.hist(values.clip(low, high), bins, color=COLORS[kind], alpha=0.55, label=kind)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    for axes in grid[len(scores) :]:
        axes.remove()
    grid[0].legend(fontsize=8)
    return figure


def density_and_distance(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str = "bits per dimension"
) -> Figure:
    """Draw bits per dimension against the squared distance from the manifold.

    Args:
        points: Bits and squared distances of ``normal`` and of ``ood`` images.
        label: Label of the x-axis.
    """
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    for kind, (bits, distance) in points.items():
        axes.scatter(bits, distance, s=5, alpha=0.4, color=COLORS[kind], label=kind, lw=0)
    finite = np.concatenate([bits[np.isfinite(bits)] for bits, _ in points.values()])
    axes.set(
        xlim=np.quantile(finite, [0.002, 0.998]),
        yscale="log",
        xlabel=label,
        ylabel="mean squared error of the projection",
    )
    axes.grid(alpha=0.25)
    axes.legend(markerscale=3)
    return figure
