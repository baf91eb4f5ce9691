"""How scores tell ood from normal images."""

from collections.abc import Collection, Mapping

import numpy as np
from matplotlib.figure import Figure

LOOKS = {"normal": "C0", "ood": "C3"}


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw true against false positives for each score, false ones by their logarithm."""
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, (false, true)) in enumerate(curves.items()):
        style = "-" if number < 10 else "--"
        axes.plot(np.maximum(false, 1e-4), true, style, label=name, lw=1.2)
    axes.set_xscale("log")
    axes.set_xlim(1e-4, 1)
    axes.set_xlabel("normal images taken for ood")
    axes.set_ylabel("ood found")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def score_histograms(scores: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw what each score is for normal images and for ood.

    Args:
        scores: By name, the values of ``normal`` and ``ood``.
    """
    columns = 3
    rows = -(-len(scores) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(scores) :]:
        axes.set_axis_off()
    for axes, (name, kinds) in zip(grid, scores.items(), strict=False):
        finite = {kind: values[np.isfinite(values)] for kind, values in kinds.items()}
        every = np.concatenate(list(finite.values()))
        low, high = np.quantile(every, [0.005, 0.995])
        for kind, values in finite.items():
            bins = np.linspace(low, high if high > low else low + 1, 50)
            axes.hist(values.clip(low, high), bins, color=LOOKS[kind], alpha=0.55, label=kind)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    grid[0].legend(fontsize=8)
    return figure


def density_and_distance(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str = "bits per dimension"
) -> Figure:
    """Scatter bits per dimension against the squared distance from the manifold.

    Args:
        points: By kind, ``normal`` and ``ood``, both of them.
        label: What stands in the place of bits per dimension.
    """
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axes = figure.subplots()
    for kind, (bits, distance) in points.items():
        axes.scatter(bits, distance, s=5, alpha=0.4, color=LOOKS[kind], label=kind, lw=0)
    every = np.concatenate([bits[np.isfinite(bits)] for bits, _ in points.values()])
    low, high = np.quantile(every, [0.002, 0.998])
    axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("mean squared error of the projection")
    axes.grid(alpha=0.25)
    axes.legend(markerscale=3)
    return figure


def auroc_dots(pairs: Mapping[str, Mapping[str, float]], plain: Collection[str] = ()) -> Figure:
    """Draw each score's AUROC, a row of dots for each pair of normal images and ood.

    Args:
        pairs: By pair, and by score.
        plain: Scores that are drawn grey, to hold the others against.
    """
    names = list(dict.fromkeys(name for scores in pairs.values() for name in scores))
    figure = Figure(figsize=(10, 0.9 + 0.34 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, (pair, scores) in zip(grid, pairs.items(), strict=True):
        for row, name in enumerate(names):
            if name in scores:
                axes.plot(scores[name], row, "o", color="0.6" if name in plain else "C0", ms=5)
        axes.axvline(0.5, color="0.8", lw=0.8)
        axes.set_xlim(-0.03, 1.03)
        axes.set_title(pair.replace(", ", ",\n"), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="y", alpha=0.25)
    grid[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    grid[0].invert_yaxis()
    figure.supxlabel("AUROC", fontsize=8)
    return figure
