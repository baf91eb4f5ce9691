"""How normal the coordinates on a manifold are."""

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

SHOWN = 2000


def latent_histogram(latents: np.ndarray) -> Figure:
    """Draw the histogram of all coordinates beside the standard normal density.

    Args:
        latents: (N, d); the first 2,000 rows are taken.
    """
    values = np.asarray(latents[:SHOWN], dtype=float).ravel()
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(-5, 5, 101)
    axes.hist(
        values.clip(-5, 5), bins=edges.tolist(), density=True, alpha=0.6, label="coordinates u"
    )
    axes.plot(edges, norm.pdf(edges), color="C3", label="N(0, 1)")
    axes.set_title(f"{latents.shape[0]:,} points in {latents.shape[1]:,} dimensions", fontsize=9)
    axes.legend(fontsize=8)
    return figure
