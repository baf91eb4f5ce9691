"""Figures of the density of single images or rows."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

BINS = 40


def density_histogram(
    values: Mapping[str, np.ndarray], label: str = "bits per dimension", events: str = "images"
) -> Figure:
    """Draw histograms of the values of single events (N,), and their mean, by split."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    finite = {name: data[np.isfinite(data)] for name, data in values.items()}
    together = np.concatenate([*finite.values()])
    low, high = np.quantile(together, [0.002, 0.998]) if len(together) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1).tolist()
    for number, (name, data) in enumerate(finite.items()):
        if not len(data):
            continue
        weights, color = np.full(len(data), 100 / len(data)), f"C{number}"
        axes.hist(data.clip(low, edges[-1]), edges, weights=weights, histtype="step",
                  color=color, linewidth=1.4, label=f"{name} ({len(data):,} {events})")  # fmt: skip
        axes.axvline(data.mean(), color=color, linestyle=":", linewidth=1)
    axes.set_xlabel(f"{label} (outermost bins include values beyond)", fontsize=9)
    axes.set_ylabel(f"% of {events}", fontsize=9)
    axes.tick_params(labelsize=8)
    if axes.patches:
        axes.legend(fontsize=8)
    return figure
