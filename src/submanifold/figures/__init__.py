"""One function for each picture: data in, matplotlib figure out."""

from submanifold.figures.curves import training_curves
from submanifold.figures.images import as_png, image_grid, rejection_rows
from submanifold.figures.latents import latent_histogram
from submanifold.figures.manifolds import DensityGrid, manifold_figure

__all__ = [
    "DensityGrid",
    "as_png",
    "image_grid",
    "latent_histogram",
    "manifold_figure",
    "rejection_rows",
    "training_curves",
]
