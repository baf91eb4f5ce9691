"""Figures of the density of single images or rows."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

BINS = 40


def density_histogram(
    values: Mapping[str, np.ndarray], label: str = "bits per dimension", events: str = "images"
) -> Figure:
    """Draw histograms of a density with a line at the mean of each split.

    Args:
        values: Values of single events (N,) by the name of a split.
        label: What the values are.
        events: What has a value: ``images`` or ``rows``.
    """
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    finite = {name: each[np.isfinite(each)] for name, each in values.items()}
    every = np.concatenate(list(finite.values()))
    low, high = np.quantile(every, [0.002, 0.998]) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1).tolist()
    for number, (name, each) in enumerate(finite.items()):
        if not len(each):
            continue
        color = f"C{number}"
        clipped = each.clip(low, edges[-1])
        axes.hist(clipped, edges, weights=np.full(len(each), 100 / len(each)), histtype="step",
                  color=color, linewidth=1.4, label=f"{name} ({len(each):,} {events})")  # fmt: skip
        axes.axvline(each.mean(), color=color, linestyle=":", linewidth=1)
    axes.set_xlabel(f"{label} (outermost bins include values beyond)", fontsize=9)
    axes.set_ylabel(f"% of {events}", fontsize=9)
    axes.tick_params(labelsize=8)
    if axes.patches:
        axes.legend(fontsize=8)
    return figure
