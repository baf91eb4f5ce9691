"""One function for each picture: data in, matplotlib or plotly figure out."""

from submanifold.plots.curves import training_curves
from submanifold.plots.dimensions import dimension_curves, frontier
from submanifold.plots.divergences import gaussian_fits
from submanifold.plots.images import as_png, image_grid
from submanifold.plots.latents import latent_histogram
from submanifold.plots.manifolds import DensityGrid, manifold_figure
from submanifold.plots.paper import (
    delta_rows,
    rejection_blocks,
    sample_panels,
    study_figure,
    sweep_figure,
)

__all__ = [
    "DensityGrid",
    "as_png",
    "delta_rows",
    "dimension_curves",
    "frontier",
    "gaussian_fits",
    "image_grid",
    "latent_histogram",
    "manifold_figure",
    "rejection_blocks",
    "sample_panels",
    "study_figure",
    "sweep_figure",
    "training_curves",
]
