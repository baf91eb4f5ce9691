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
KINDS = {
    "default": "default projection",
    "encoder": "encoder projection",
    "nearest": "nearest projection",
    "pca": "PCA",
}


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Arrange uint8 images (N, channels, height, width) in rows of `columns` images."""
    factor = math.ceil(max(images.shape[2:]) / MAX_SIDE)
    picture = Image.fromarray(tile(images, columns))
    return picture.reduce(factor) if factor > 1 else picture


def by_dim(originals: np.ndarray, projected: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Prepare rows of originals, and of their nearest and PCA's projections at each dimension."""
    rows = [{"name": "original", "image": sheet(originals, len(originals)), "text": ""}]
    for number, dim in enumerate(projected["dims"].tolist()):
        for kind in ("nearest", "pca"):
            images = projected[kind][number]
            error = _describe(pixel_errors(images, originals).mean())
            picture = sheet(images, len(images))
            rows.append({"name": f"d = {dim}, {KINDS[kind]}", "image": picture, "text": error})
    return rows


def side_by_side(
    originals: np.ndarray, projections: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Prepare the ``name``, ``image`` and ``text`` of originals and of their projections."""
    rows = [{"name": "original", "image": sheet(originals, len(originals)), "text": ""}]
    for kind, name in KINDS.items():
        if kind in projections:
            error = _describe(pixel_errors(projections[kind], originals).mean())
            picture = sheet(projections[kind], len(originals))
            rows.append({"name": name, "image": picture, "text": error})
    return rows


def _describe(error: float) -> str:
    return f"MSE {error:.2g}, PSNR {_decibels(error)} dB" if error > EXACT else "exact"


def _decibels(error: float) -> str:
    return f"{psnr(error):.1f}" if error > EXACT else "exact"
