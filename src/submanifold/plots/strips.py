"""Rows of images for pages, at their own size: browsers enlarge them without smoothing."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from submanifold.evaluation.illustrations import pixel_errors
from submanifold.evaluation.reconstruction import psnr
from submanifold.plots.images import tile

PHONE = 4  # most images of a strip, which a phone shows in a row
MAX_SIDE = 128  # largest side of an image on a page, in pixels; larger images are reduced
EXACT = 1e-9  # squared errors below this count as zero
KINDS = {"default": "default projection", "encoder": "encoder projection",
         "nearest": "nearest projection", "pca": "PCA"}  # fmt: skip


def strips(images: np.ndarray, columns: int) -> list[Image.Image]:
    """Arrange uint8 images (N, channels, height, width) in rows of `columns` images.

    They are cut into strips of at most four columns, which a page shows side by side, or one below
    the other on a phone.
    """
    factor = math.ceil(max(images.shape[2:]) / MAX_SIDE)
    column = np.arange(len(images)) % columns
    parts = [images[column // PHONE == k] for k in range(column.max() // PHONE + 1)]
    widths = [len({*column[column // PHONE == k]}) for k in range(len(parts))]
    sheets = [Image.fromarray(tile(*each)) for each in zip(parts, widths, strict=True)]
    return [sheet.reduce(factor) if factor > 1 else sheet for sheet in sheets]


def films(frames: np.ndarray) -> list[dict[str, Any]]:
    """Stack :func:`strips` of rows of images (frames, N, ...), of which a page shows one at a time.

    Each has a white gap below it. With the picture of all frames are the numbers of its images and
    the ratio of the width to the height of a frame without its gap.
    """
    by_frame = [strips(images, len(images)) for images in frames]
    pictures = []
    for k, rows in enumerate(zip(*by_frame, strict=True)):
        pixels = np.stack([*map(np.asarray, rows)])
        _, height, width, _ = pixels.shape
        padding = (0, 0), (0, max(1, height // 16)), (0, 0), (0, 0)
        stacked = np.pad(pixels, padding, constant_values=255).reshape(-1, width, 3)
        pictures.append({"picture": Image.fromarray(stacked), "ratio": width / height,
                         "images": range(frames.shape[1])[PHONE * k :][:PHONE]})  # fmt: skip
    return pictures


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
        rows.append({
            "name": name, "films": films(by_dim[kind]), "frames": len(available), "shown": index,
            "means": [None if k is None else _describe(errors[k].mean()) for k in index],
            "images": [[] if k is None else [_decibels(e) for e in errors[k]] for k in index],
        })  # fmt: skip
    return {"dims": dims, "start": dims.index(dim), "columns": len(originals),
            "originals": films(originals[None]), "rows": rows}  # fmt: skip


def side_by_side(
    originals: np.ndarray, projections: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Prepare the ``name``, ``strips`` and ``text`` of originals and of their projections."""
    rows = [{"name": "original", "strips": strips(originals, len(originals)), "text": ""}]
    for kind, name in KINDS.items():
        if kind in projections:
            error = _describe(pixel_errors(projections[kind], originals).mean())
            pictures = strips(projections[kind], len(originals))
            rows.append({"name": name, "strips": pictures, "text": error})
    return rows


def _describe(error: float) -> str:
    return f"MSE {error:.2g}, PSNR {_decibels(error)} dB" if error > EXACT else "exact"


def _decibels(error: float) -> str:
    return f"{psnr(error):.1f}" if error > EXACT else "exact"
