"""Rows of images for pages, at their own size: browsers enlarge them without smoothing."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from submanifold.evaluation.illustrations import pixel_errors
from submanifold.evaluation.reconstruction import psnr
from submanifold.plots.images import tile

MAX_SIDE = 128  # largest side of an image on a page, in pixels; larger images are reduced
EXACT = 1e-9  # squared errors below this count as zero
KINDS = {"default": "default projection", "encoder": "encoder projection",
         "nearest": "nearest projection", "pca": "PCA"}  # fmt: skip


def strip(images: np.ndarray, columns: int) -> Image.Image:
    """Arrange uint8 images (N, channels, height, width) in rows of `columns` images."""
    height, width = images.shape[2:]
    factor = math.ceil(max(height, width) / MAX_SIDE)
    sheet = Image.fromarray(tile(images, columns))
    return sheet.reduce(factor) if factor > 1 else sheet


def film(frames: np.ndarray) -> tuple[Image.Image, float]:
    """Stack rows of images (frames, N, ...), of which a page shows one at a time.

    Each has a white gap below it. Also return the ratio of the width to the height without it.
    """
    rows = np.stack([np.asarray(strip(images, len(images))) for images in frames])
    _, height, width, _ = rows.shape
    padding = (0, 0), (0, max(1, height // 16)), (0, 0), (0, 0)
    padded = np.pad(rows, padding, constant_values=255)
    return Image.fromarray(padded.reshape(-1, width, 3)), width / height


def dimension_slider(originals: np.ndarray, by_dim: Mapping[str, np.ndarray], dim: int) -> Any:
    """Prepare a slider over the dimension of nested manifolds, which starts at `dim`.

    The ``rows`` of each kind of projection have the index of the frame ``shown`` at each dimension,
    or None where there is no projection.
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
    """Prepare the ``name``, ``strip`` and ``error`` of originals and of their projections."""
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
