"""Pictures made of images."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import laplace

INCHES_PER_IMAGE = 0.62
DPI = 150


def image_grid(images: np.ndarray, columns: int = 8, title: str | None = None) -> Figure:
    """Lay out images in rows, without gaps between the pixels of one image.

    Args:
        images: uint8 (N, channels, height, width), 1 or 3 channels.
        columns: Images in a row.
        title: Shown above.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    head = 0.3 if title else 0.0
    figure = Figure(figsize=(columns * INCHES_PER_IMAGE, rows * INCHES_PER_IMAGE + head))
    axes = figure.add_axes((0, 0, 1, 1 - head / figure.get_figheight()))
    show_pixels(axes, tile(images, columns))
    if title:
        axes.set_title(title, fontsize=9)
    return figure


def rejection_rows(original: np.ndarray, projection: np.ndarray) -> Figure:
    """Draw Figure 7: original, projection, difference, and the edges of the difference.

    Args:
        original: uint8 (N, channels, height, width).
        projection: Their projections onto the manifold, likewise.
    """
    rows = rejection_maps(original, projection)
    columns = len(original)
    figure = Figure(figsize=(columns * INCHES_PER_IMAGE + 0.9, len(rows) * INCHES_PER_IMAGE))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=0.9 / figure.get_figwidth(), right=1, bottom=0, top=1, wspace=0.04, hspace=0.04
    )
    for axes_row, (label, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            show_pixels(axes, image)
        axes_row[0].text(
            -0.08, 0.5, label, transform=axes_row[0].transAxes, ha="right", va="center", fontsize=8
        )
    return figure


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Put images in rows on a white canvas, with a gap of a sixteenth of their height.

    Args:
        images: uint8 (N, channels, height, width), 1 or 3 channels.
        columns: Images in a row.

    Returns:
        uint8 (height, width, channels) of the whole.
    """
    channels, height, width = images.shape[1:]
    rows = -(-len(images) // columns)
    gap = image_gap(height)
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return canvas


def image_gap(height: int) -> int:
    """Pixels between images of this height in a grid."""
    return max(1, height // 16)


def rejection_maps(original: np.ndarray, projection: np.ndarray) -> dict[str, np.ndarray]:
    """Compare images with their projections.

    The difference is the absolute error, averaged over channels and scaled by its 99.5th
    percentile over all images shown; the edges are the absolute Laplacian of the difference.

    Args:
        original: uint8 (N, channels, height, width).
        projection: Their projections onto the manifold, likewise.

    Returns:
        uint8 (N, height, width, channels) under "original" and "projection", and
        uint8 (N, height, width) under "difference" and "edges".
    """
    difference = np.abs(original.astype(float) - projection.astype(float)).mean(1)
    edges = np.abs(np.stack([laplace(each) for each in difference]))
    return {
        "original": original.transpose(0, 2, 3, 1),
        "projection": projection.transpose(0, 2, 3, 1),
        "difference": _scaled(difference),
        "edges": _scaled(edges),
    }


def show_pixels(axes: Axes, image: np.ndarray) -> None:
    """Fill axes with an image, uint8 (height, width) or (height, width, 1 or 3)."""
    shown = image[..., 0] if image.shape[2:] == (1,) else image
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def as_png(figure: Figure, dpi: int = DPI) -> bytes:
    """Render a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _scaled(values: np.ndarray) -> np.ndarray:
    top = max(np.percentile(values, 99.5), 1e-9)
    return (255 * np.clip(values / top, 0, 1)).astype(np.uint8)
