"""One function for each picture: data in, matplotlib figure out."""

from submanifold.figures.curves import training_curves
from submanifold.figures.images import as_png, image_grid, rejection_rows
from submanifold.figures.latents import latent_histogram

__all__ = ["as_png", "image_grid", "latent_histogram", "rejection_rows", "training_curves"]
