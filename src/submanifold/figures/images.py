"""Pictures made of images."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import laplace

INCHES_PER_IMAGE = 0.62


def image_grid(images: np.ndarray, columns: int = 8, title: str | None = None) -> Figure:
    """Lay out images in rows, without gaps between the pixels of one image.

    Args:
        images: uint8 (N, channels, height, width), 1 or 3 channels.
        columns: Images in a row.
        title: Shown above.
    """
    channels, height, width = images.shape[1:]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap = max(1, height // 16)
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    figure = Figure(figsize=(columns * INCHES_PER_IMAGE, rows * INCHES_PER_IMAGE + 0.3))
    axes = figure.add_axes((0, 0, 1, 1 - (0.3 / figure.get_figheight() if title else 0)))
    _show(axes, canvas)
    if title:
        axes.set_title(title, fontsize=9)
    return figure


def rejection_rows(original: np.ndarray, projection: np.ndarray) -> Figure:
    """Draw Figure 7: original, projection, difference, and the edges of the difference.

    The difference is the absolute error, averaged over channels and scaled by its 99.5th
    percentile over all images shown; the edges are the absolute Laplacian of the difference.

    Args:
        original: uint8 (N, channels, height, width).
        projection: Their projections onto the manifold, likewise.
    """
    difference = np.abs(original.astype(float) - projection.astype(float)).mean(1)
    edges = np.abs(np.stack([laplace(each) for each in difference]))
    rows = {
        "original": original.transpose(0, 2, 3, 1),
        "projection": projection.transpose(0, 2, 3, 1),
        "difference": _scaled(difference),
        "edges": _scaled(edges),
    }
    columns = len(original)
    figure = Figure(figsize=(columns * INCHES_PER_IMAGE + 0.9, len(rows) * INCHES_PER_IMAGE))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=0.9 / figure.get_figwidth(), right=1, bottom=0, top=1, wspace=0.04, hspace=0.04
    )
    for axes_row, (label, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            _show(axes, image)
        axes_row[0].text(
            -0.08, 0.5, label, transform=axes_row[0].transAxes, ha="right", va="center", fontsize=8
        )
    return figure


def as_png(figure: Figure, dpi: int = 150) -> bytes:
    """Render a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _scaled(values: np.ndarray) -> np.ndarray:
    top = max(np.percentile(values, 99.5), 1e-9)
    return (255 * np.clip(values / top, 0, 1)).astype(np.uint8)


def _show(axes, image: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    grey: Sequence[int] = image.shape[2:]
    shown = image[..., 0] if grey == (1,) else image
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
