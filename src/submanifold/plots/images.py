"""Grids of images, as arrays, PNG files, and figures."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

DPI = 150
MIN_WIDTH = 64  # smallest width in pixels of an image on a sheet; smaller images are enlarged


def image_grid(images: np.ndarray, columns: int = 8, title: str | None = None) -> Figure:
    """Draw uint8 images (N, 1 or 3, height, width) in rows of `columns` images."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, (axes,) = panel_grid(1, 1, (0.62 * columns, 0.62 * rows + 0.3), "compressed")
    show(axes, tile(images, columns))
    axes.set_title(title or "", fontsize=9)
    return figure


def panel_grid(
    count: int, columns: int, size: tuple[float, float], layout: Any = "constrained"
) -> tuple[Figure, list[Any]]:
    """Return a figure and the axes of panels with a width and a height in inches."""
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return figure, [*grid[:count]]


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Arrange uint8 images (N, 1 or 3, height, width) in a white grid, (height, width, 3)."""
    import torch
    from torchvision.utils import make_grid

    gap = max(1, images.shape[2] // 16)
    columns = min(columns, len(images))
    pixels = torch.tensor(np.ascontiguousarray(images))
    grid = make_grid(pixels, columns, gap, pad_value=255).permute(1, 2, 0).numpy()
    return grid if len(images) == 1 else grid[gap:-gap, gap:-gap]


def show(axes: Axes, image: np.ndarray) -> None:
    """Draw an image (height, width, 3) without ticks and without a frame."""
    height, width, _ = image.shape
    enlarged = image.repeat(2, axis=0).repeat(2, axis=1)  # resampling keeps its pixels sharp
    axes.imshow(enlarged, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def sample_sheet(images: np.ndarray, columns: int = 8) -> Image.Image:
    """Arrange images as :func:`tile` does; small images are enlarged by a whole factor."""
    sheet = Image.fromarray(tile(images, columns))
    scale = max(1, MIN_WIDTH // images.shape[3])
    return sheet.resize((scale * sheet.width, scale * sheet.height), Image.Resampling.NEAREST)


def as_png(picture: Figure | Image.Image) -> bytes:
    """Render a figure, or encode an image, as a PNG file."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "png", optimize=True)
    else:
        picture.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
