"""Rows of images for pages, at their own size: browsers enlarge them without smoothing."""

import math
from collections.abc import Mapping, Sequence
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
    rows = [np.asarray(strip(images, len(images))) for images in frames]
    height, width, _ = rows[0].shape
    gap = max(1, height // 16)
    padded = [np.pad(each, ((0, gap), (0, 0), (0, 0)), constant_values=255) for each in rows]
    return Image.fromarray(np.concatenate(padded)), width / height


def dimension_slider(originals: np.ndarray, found: Mapping[str, np.ndarray], dim: int) -> Any:
    """Prepare a slider over the dimension of nested manifolds.

    Args:
        originals: uint8 images (N, ...).
        found: The result of :func:`~submanifold.evaluation.illustrations.project_by_dim`.
        dim: Dimension at which the slider starts, one of ``dims``.

    Returns:
        ``dims``, the index ``start``, the number of ``columns``, the ``originals`` and ``ratio`` of
        their width to their height; ``rows``: for each kind of projection its ``name``, ``film``,
        number of ``frames``, and for each dimension a text in ``means`` and ``images`` (a list for
        each image), and the index of the frame in ``shown``, or None where there is no projection.
    """
    dims = found["dims"].tolist()
    rows = []
    for kind, name in KINDS.items():
        own = found.get(f"{kind}_dims", found["dims"]).tolist()
        if not own:
            continue
        errors = pixel_errors(found[kind], originals)
        index = [own.index(d) if d in own else None for d in dims]
        picture, _ = film(found[kind])
        rows.append({
            "name": name, "film": picture, "frames": len(own), "shown": index,
            "means": [None if k is None else describe_error(errors[k].mean()) for k in index],
            "images": [[] if k is None else [_decibels(e) for e in errors[k]] for k in index],
        })  # fmt: skip
    columns = len(originals)
    picture, ratio = film(originals[None])
    return {"dims": dims, "start": dims.index(dim), "columns": columns, "originals": picture,
            "ratio": ratio, "rows": rows}  # fmt: skip


KINDS = {
    "default": "default projection",
    "encoder": "encoder projection",
    "nearest": "nearest projection",
    "pca": "PCA",
}


def side_by_side(originals: np.ndarray, found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Prepare rows of images: originals, and their projections with mean errors.

    Args:
        originals: uint8 images (N, ...).
        found: The result of :func:`~submanifold.evaluation.illustrations.project_all`.

    Returns:
        ``name``, ``strip`` and ``error`` of the originals and of each kind of projection.
    """
    rows = [{"name": "original", "strip": strip(originals, len(originals)), "error": ""}]
    for kind, name in KINDS.items():
        if kind in found:
            error = describe_error(pixel_errors(found[kind], originals).mean())
            picture = strip(found[kind], len(originals))
            rows.append({"name": name, "strip": picture, "error": error})
    return rows


def describe_error(error: float) -> str:
    """Write a mean squared error of pixels in [0, 1], and its PSNR."""
    return f"MSE {error:.2g}, PSNR {_decibels(error)} dB" if error > EXACT else "exact"


def _decibels(error: float) -> str:
    return f"{psnr(error):.1f}" if error > EXACT else "exact"


def spectrum(rotation: Mapping[str, Sequence[float]], event_dim: int) -> list[tuple[float, float]]:
    """Return the spectrum of a rotation: dimensions and mean eigenvalues between them.

    Args:
        rotation: The result of :func:`submanifold.training.rotation.fit_rotation`. Differences of
            its first-order errors are sums of eigenvalues, divided by the number of elements of an
            event.
        event_dim: This number.
    """
    dims, errors = rotation["dims"], rotation["mse"]
    pairs = zip(
        zip(dims, errors, strict=True), zip(dims[1:], errors[1:], strict=True), strict=False
    )
    found = [
        (math.sqrt(max(a, 0.5) * b), event_dim * (e - f) / (b - a)) for (a, e), (b, f) in pairs
    ]
    return [(d, value) for d, value in found if value > 0]
