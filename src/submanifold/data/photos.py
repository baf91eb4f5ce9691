"""Patches of the colour photographs that scikit-image and scikit-learn carry in their wheels."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from itertools import pairwise, product

import numpy as np
from PIL import Image

from submanifold.data.settings import ImageSettings
from submanifold.data.source import Source
from submanifold.errors import UserError

FILES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
CELL = 128
WANTED = 8000
FINGERPRINT = "photos:1"


def photo_patches(
    settings: ImageSettings, photos: Mapping[str, np.ndarray] | None = None
) -> Source:
    """Square patches of photographs, split so that no two splits share a pixel.

    Each photograph is cut into a grid of cells of about 128 x 128 pixels and each cell belongs to
    one split (80/10/10 in cells, by seed). Patches are taken inside a cell, at full resolution
    and, where the cell still holds one, at half: an average over 2 x 2 pixels of that cell alone.
    The stride is the one that gives closest to 8,000 patches. Names are
    `photo/cell/resolution/top-left`.

    Args:
        settings: `size`, `channels` and `seed` are used.
        photos: Name -> integer array (height, width, channels); those in the wheels by default.

    Raises:
        UserError: If a cell does not hold a patch of that size.
    """
    size = settings.size
    photos = read_photos(settings.channels) if photos is None else photos
    cells = {
        (photo, cell): pixels[top:bottom, left:right]
        for photo, pixels in photos.items()
        for cell, (top, bottom, left, right) in enumerate(grid(*pixels.shape[:2]))
    }
    smallest = min(CELL, *(min(tile.shape[:2]) for tile in cells.values()))
    if size > smallest:
        raise UserError(
            f"size={size} is too large for source=photos, whose regions hold {smallest} pixels; "
            f"set size to {smallest} or less, or another source"
        )
    tiles = {(*cell, "full"): pixels for cell, pixels in cells.items()}
    tiles |= {(*cell, "half"): halve(pixels) for cell, pixels in cells.items()}

    def corners(tile: np.ndarray, stride: int) -> list[tuple[int, int]]:
        rows, columns = (starts(extent, size, stride) for extent in tile.shape[:2])
        return list(product(rows, columns))

    def excess(stride: int) -> int:
        return abs(sum(len(corners(tile, stride)) for tile in tiles.values()) - WANTED)

    stride, split = min(range(4, CELL), key=excess), assign(list(cells), settings.seed)
    patches, parts = {}, {}
    for (photo, cell, scale), tile in tiles.items():
        for top, left in corners(tile, stride):
            name = f"{photo}/{cell:02d}/{scale}/{top:03d}-{left:03d}"
            patches[name] = tile[top : top + size, left : left + size].transpose(2, 0, 1)
            parts[name] = split[photo, cell]
    crop = f"patches inside cells of about {CELL}x{CELL}"
    return Source(sorted(patches), patches.__getitem__, np.asarray, parts, "cells", crop)


def read_photos(channels: int) -> dict[str, np.ndarray]:
    """The photographs in the installed wheels, uint8 (height, width, channels).

    Raises:
        UserError: If an installed version no longer carries one.
    """
    photos = {}
    for name, (package, inside) in FILES.items():
        file = resources.files(package) / inside
        if not file.is_file():
            raise UserError(
                f"source=photos needs {inside}, which the installed {package} does not carry; "
                "install the version in constraints.txt, or set source=folder and path"
            )
        with file.open("rb") as stream, Image.open(stream) as image:
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
        photos[name] = pixels.reshape(*pixels.shape[:2], channels)
    return photos


def grid(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Even cells of about 128 x 128 that cover an image: (top, bottom, left, right) of each."""
    rows, columns = (
        np.linspace(0, extent, max(1, round(extent / CELL)) + 1).round().astype(int).tolist()
        for extent in (height, width)
    )
    return [(*rows, *columns) for rows, columns in product(pairwise(rows), pairwise(columns))]


def halve(pixels: np.ndarray) -> np.ndarray:
    """Average over 2 x 2 pixels, rounded half up; an odd last row or column is left out."""
    height, width = (extent // 2 * 2 for extent in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return ((blocks.sum(axis=(1, 3), dtype=np.int64) + 2) // 4).astype(pixels.dtype)


def starts(extent: int, size: int, stride: int) -> list[int]:
    """Where patches begin along one axis: about a stride apart, the last one flush with the end."""
    if extent < size:
        return []
    count = round((extent - size) / stride) + 1
    return np.linspace(0, extent - size, count).round().astype(int).tolist()


def assign(cells: list[tuple[str, int]], seed: int) -> dict[tuple[str, int], str]:
    """Cells to splits: of every ten, in an order shuffled within each photograph, 8, 1 and 1.

    Counting on from one photograph to the next gives each split cells of nearly all of them.
    """
    rng = np.random.default_rng(seed)
    order = sorted(cells, key=lambda cell: (cell[0], rng.random()))
    return {cell: {4: "valid", 9: "test"}.get(i % 10, "train") for i, cell in enumerate(order)}
