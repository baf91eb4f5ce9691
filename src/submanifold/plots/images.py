"""Pictures made of images."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INCHES_PER_IMAGE = 0.62
DPI = 150


def image_grid(images: np.ndarray, columns: int = 8, title: str | None = None) -> Figure:
    """Lay out images in rows, with a title above.

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


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Put images (N, channels, height, width) in rows on white, a sixteenth of them apart.

    Returns:
        uint8 (height, width, channels) of the whole.
    """
    gap, rows = image_gap(images.shape[2]), -(-len(images) // columns)
    missing = (0, rows * columns - len(images))
    cells = np.pad(images, (missing, (0, 0), (0, gap), (0, gap)), constant_values=255)
    grid = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 3, 1, 4, 2)
    return grid.reshape(-1, columns * cells.shape[3], images.shape[1])[:-gap, :-gap]


def image_gap(height: int) -> int:
    """Pixels between images of this height in a grid."""
    return max(1, height // 16)


def show_pixels(
    axes: Axes, image: np.ndarray, extent: tuple[float, float, float, float] | None = None
) -> None:
    """Fill axes, or left, right, bottom and top in them, with an image.

    Args:
        axes: What it is drawn in.
        image: uint8, (height, width) or (height, width, 1 or 3).
        extent: Its place in the axes' coordinates; all of them where None.
    """
    shown = image[..., 0] if image.shape[2:] == (1,) else image
    axes.imshow(
        shown, extent=extent, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
    )
    axes.set_axis_off()


SMALLEST = 64
"""About the least width of an image on a sheet, in dots."""


def sample_sheet(images: np.ndarray, columns: int = 8) -> Image.Image:
    """Lay out images like :func:`tile`, small ones whole times as large, for a page.

    Args:
        images: uint8 (N, channels, height, width), 1 or 3 channels.
        columns: Images in a row.
    """
    sheet = tile(images, columns)
    shown = Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet)
    scale = _scale(images.shape[-1])
    return shown.resize((scale * shown.width, scale * shown.height), Image.Resampling.NEAREST)


def sheet_bytes(channels: int, height: int, width: int) -> int:
    """Bytes of memory that :func:`sample_sheet` and :func:`as_png` take for each image, at most."""
    cell = channels * (height + image_gap(height)) * (width + image_gap(height))
    return 2 * cell * (1 + _scale(width) ** 2)


def _scale(width: int) -> int:
    return max(1, SMALLEST // width)


def as_png(picture: Figure | Image.Image, dpi: int = DPI) -> bytes:
    """Render a figure, or an image as it is, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "png", optimize=True)
    else:
        picture.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
