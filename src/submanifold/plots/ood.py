"""Figures of densities and of out-of-distribution (OOD) detection."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from submanifold.plots.images import panel_grid

COLORS = {"normal": "C0", "ood": "C3"}
LABELS = {"normal": "in-distribution", "ood": "out-of-distribution"}
BINS = 40


def density_histogram(
    values: Mapping[str, np.ndarray], label: str = "bits per dimension", events: str = "images"
) -> Figure:
    """Draw histograms of the values of single events (N,), and their mean, by split."""
    figure, (axes,) = panel_grid(1, 1, (7, 3))
    finite = {name: data[np.isfinite(data)] for name, data in values.items()}
    together = np.concatenate([*finite.values()])
    low, high = _range(together, 0.002)
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1).tolist()
    for number, (name, data) in enumerate(finite.items()):
        if not len(data):
            continue
        weights, color = np.full(len(data), 100 / len(data)), f"C{number}"
        axes.hist(
            data.clip(low, edges[-1]),
            edges,
            weights=weights,
            histtype="step",
            color=color,
            linewidth=1.4,
            label=f"{name} ({len(data):,} {events})",
        )
        axes.axvline(data.mean(), color=color, linestyle=":", linewidth=1)
    axes.set_xlabel(f"{label} (outermost bins include values beyond)", fontsize=9)
    axes.set_ylabel(f"% of {events}", fontsize=9)
    axes.tick_params(labelsize=8)
    if axes.patches:
        axes.legend(fontsize=8)
    return figure


def threshold_histogram(
    normal: np.ndarray, ood: np.ndarray, thresholds: Mapping[str, float]
) -> Figure:
    """Draw histograms of non-negative scores, and by label the thresholds of flagged images."""
    kinds = {"normal": normal, "ood": ood}
    finite = {kind: values[np.isfinite(values) & (values > 0)] for kind, values in kinds.items()}
    thresholds = {label: value for label, value in thresholds.items() if 0 < value < np.inf}
    together = np.concatenate([*finite.values(), list(thresholds.values())])
    ends = np.log10([together.min(), together.max()]) if len(together) else (0.0, 1.0)
    bins = np.logspace(ends[0], max(ends[1], ends[0] + 0.1), 50).tolist()
    figure, (axes,) = panel_grid(1, 1, (7.5, 3.2))
    for kind, values in finite.items():
        weights = np.full(len(values), 1 / max(len(kinds[kind]), 1))
        axes.hist(values, bins, weights=weights, color=COLORS[kind], alpha=0.55, label=LABELS[kind])
    for number, (label, value) in enumerate(thresholds.items()):
        axes.axvline(value, color="0.25", linestyle="--", linewidth=1)
        axes.text(
            value,
            0.98 - 0.08 * number,
            f" {label}",
            transform=axes.get_xaxis_transform(),
            va="top",
            fontsize=8,
        )
    axes.set(xscale="log", xlabel="anomaly score", ylabel="fraction")
    axes.margins(x=0.01)
    axes.legend(fontsize=8)
    return figure


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw ROC curves by score: false-positive (logarithmic) and true-positive rates."""
    figure, (axes,) = panel_grid(1, 1, (6.5, 5))
    for number, (name, (false, true)) in enumerate(curves.items()):
        axes.plot(np.maximum(false, 1e-4), true, "-" if number < 10 else "--", label=name, lw=1.2)
    axes.set(
        xscale="log", xlim=(1e-4, 1), xlabel="false-positive rate", ylabel="true-positive rate"
    )
    axes.grid(alpha=0.25)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)
    return figure


def score_histograms(scores: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw histograms of each score for ``normal`` and for ``ood`` images."""
    figure, grid = panel_grid(len(scores), 3, (3.4, 2.0))
    for axes, (name, kinds) in zip(grid, scores.items(), strict=True):
        finite = {kind: values[np.isfinite(values)] for kind, values in kinds.items()}
        low, high = _range(np.concatenate(list(finite.values())), 0.005)
        bins = np.linspace(low, high if high > low else low + 1, 50)
        for kind, values in finite.items():
            axes.hist(
                values.clip(low, high), bins, color=COLORS[kind], alpha=0.55, label=LABELS[kind]
            )
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    grid[0].legend(fontsize=8)
    return figure


def density_and_distance(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str = "bits per dimension"
) -> Figure:
    """Draw bits and squared distances from the manifold of ``normal`` and of ``ood`` images."""
    figure, (axes,) = panel_grid(1, 1, (6.5, 5))
    for kind, (bits, distance) in points.items():
        axes.scatter(bits, distance, s=5, alpha=0.4, color=COLORS[kind], label=LABELS[kind], lw=0)
    finite = np.concatenate([bits[np.isfinite(bits)] for bits, _ in points.values()])
    low, high = _range(finite, 0.002)
    if high > low:
        axes.set_xlim(low, high)
    if any((np.isfinite(distance) & (distance > 0)).any() for _, distance in points.values()):
        axes.set_yscale("log")
    axes.set(xlabel=label, ylabel="mean squared error of the projection")
    axes.grid(alpha=0.25)
    axes.legend(markerscale=3)
    return figure


def _range(values: np.ndarray, outside: float) -> tuple[float, float]:
    """Return the quantiles that leave out a fraction on each side; 0 and 1 without values."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)
