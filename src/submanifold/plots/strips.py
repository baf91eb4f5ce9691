"""Rows of images for pages, at their own size: browsers enlarge them without smoothing."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from submanifold.evaluation.illustrations import pixel_errors
from submanifold.evaluation.reconstruction import psnr
from submanifold.plots.images import tile

MAX_SIDE = 128
"""Largest side of an image on a page, in pixels; larger images are reduced."""
EXACT = 1e-9
"""Squared errors below this count as zero."""
KINDS = {"default": "default projection", "encoder": "encoder projection",
         "nearest": "nearest projection", "pca": "PCA"}  # fmt: skip


def strip(images: np.ndarray, columns: int) -> Image.Image:
    """Arrange uint8 images (N, channels, height, width) in rows of `columns` images."""
    height, width = images.shape[2:]
    factor = math.ceil(max(height, width) / MAX_SIDE)
    sheet = Image.fromarray(tile(images, columns))
    return sheet.reduce(factor) if factor > 1 else sheet


def film(frames: np.ndarray) -> tuple[Image.Image, float]:
    """Stack rows of images; a page shows one row at a time.

    Args:
        frames: uint8 (frames, N, channels, height, width).

    Returns:
        The rows from top to bottom, each with a white gap below it, and the ratio of the width to
        the height of a row without its gap.
    """
    rows = np.stack([np.asarray(strip(images, len(images))) for images in frames])
    _, height, width, _ = rows.shape
    padding = (0, 0), (0, max(1, height // 16)), (0, 0), (0, 0)
    padded = np.pad(rows, padding, constant_values=255)
    return Image.fromarray(padded.reshape(-1, width, 3)), width / height


def dimension_slider(originals: np.ndarray, by_dim: Mapping[str, np.ndarray], dim: int) -> Any:
    """Prepare a slider over the dimension of nested manifolds.

    Args:
        originals: uint8 images (N, ...).
        by_dim: The result of :func:`~submanifold.evaluation.illustrations.project_by_dim`.
        dim: Dimension at which the slider starts, one of ``dims``.

    Returns:
        ``dims``, the index ``start``, the number of ``columns``, the ``originals`` and ``ratio`` of
        their width to their height; ``rows``: for each kind of projection its ``name``, ``film``,
        number of ``frames``, and for each dimension a text in ``means`` and ``images`` (a list for
        each image), and the index of the frame in ``shown``, or None where there is no projection.
    """
    dims, rows = by_dim["dims"].tolist(), []
    for kind, name in KINDS.items():
        available = by_dim.get(f"{kind}_dims", by_dim["dims"]).tolist()
        if not available:
            continue
        errors = pixel_errors(by_dim[kind], originals)
        index = [available.index(d) if d in available else None for d in dims]
        picture, _ = film(by_dim[kind])
        rows.append({
            "name": name, "film": picture, "frames": len(available), "shown": index,
            "means": [None if k is None else _describe(errors[k].mean()) for k in index],
            "images": [[] if k is None else [_decibels(e) for e in errors[k]] for k in index],
        })  # fmt: skip
    picture, ratio = film(originals[None])
    return {"dims": dims, "start": dims.index(dim), "columns": len(originals),
            "originals": picture, "ratio": ratio, "rows": rows}  # fmt: skip


def side_by_side(
    originals: np.ndarray, projections: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Prepare rows of uint8 images (N, ...): originals, and their projections with mean errors.

    The projections are the result of :func:`~submanifold.evaluation.illustrations.project_all`.

    Returns:
        ``name``, ``strip`` and ``error`` of the originals and of each kind of projection.
    """
    rows = [{"name": "original", "strip": strip(originals, len(originals)), "error": ""}]
    for kind, name in KINDS.items():
        if kind in projections:
            error = _describe(pixel_errors(projections[kind], originals).mean())
            picture = strip(projections[kind], len(originals))
            rows.append({"name": name, "strip": picture, "error": error})
    return rows


def _describe(error: float) -> str:
    return f"MSE {error:.2g}, PSNR {_decibels(error)} dB" if error > EXACT else "exact"


def _decibels(error: float) -> str:
    return f"{psnr(error):.1f}" if error > EXACT else "exact"
