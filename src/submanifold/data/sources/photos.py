"""Patches of the colour photographs in the installed scikit-image and scikit-learn."""

from __future__ import annotations

import math
from collections import Counter
from importlib import resources
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from PIL import Image

from submanifold.common.errors import import_extra, unexpected
from submanifold.data.fields import ImageFields
from submanifold.data.sources.base import Source, SourceType

PHOTO_FILES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
PLAY = 32  #: Pixels by which the smallest cell exceeds a patch.
GAP = 8  #: Pixels between cells: no 8 x 8 block of a JPEG is in two cells.
TARGET = 8000
SPLIT_OF = {4: "valid", 9: "test"}  # of every ten cells; the others are for training
LARGEST = 128


def open_photos(settings: ImageFields, raw_folder: Path) -> Source:
    """Cut photographs into square patches, such that no two splits share a pixel.

    Each photograph is divided into a grid of cells of at least size + 32 pixels a side, separated
    by gaps of 8 pixels. Each cell belongs to one split (80/10/10 of the cells, by seed). Patches
    are taken inside a cell at full resolution, and at half (averages over 2 x 2 pixels) if they
    fit. Patches of one cell overlap and are not independent: cells are the groups of the images.
    The stride is chosen to give about 8,000 patches. Names are `photo/cell/resolution/top-left`.
    """
    size, photos = settings.size, read_photos(settings.channels)
    largest = min(LARGEST, *(min(pixels.shape[:2]) for pixels in photos.values()))
    if size > largest:
        expected = f"at most {largest} with source=photos"
        raise unexpected("size", expected, size, "Decrease it, or set another source")
    cells = {
        (photo, number): cell
        for photo, pixels in photos.items()
        for number, cell in enumerate(divide(pixels, size + PLAY))
    }
    tiles = {(*cell, "full"): pixels for cell, pixels in cells.items()}
    tiles |= {(*cell, "half"): halve(pixels) for cell, pixels in cells.items()}
    shapes = Counter(tile.shape[:2] for tile in tiles.values())

    def error(stride: float) -> int:
        patches = (
            count * math.prod(len(starts(extent, size, stride)) for extent in shape)
            for shape, count in shapes.items()
        )
        return abs(sum(patches) - TARGET)

    # fractions of a pixel: one pixel more may reduce the number of patches by a third
    stride = min(np.arange(4, size + PLAY, 0.25).tolist(), key=error)
    rng = np.random.default_rng(settings.seed)
    order = sorted(cells, key=lambda cell: (cell[0], rng.random()))  # random within a photograph
    split_of = {cell: SPLIT_OF.get(n % 10, "train") for n, cell in enumerate(order)}
    patches, splits, groups = {}, {}, {}
    for (photo, cell, scale), tile in tiles.items():
        for top, left in product(*(starts(extent, size, stride) for extent in tile.shape[:2])):
            name = f"{photo}/{cell:03d}/{scale}/{top:03d}-{left:03d}"
            patches[name] = tile[top : top + size, left : left + size].transpose(2, 0, 1)
            splits[name], groups[name] = split_of[photo, cell], f"{photo}/{cell:03d}"
    return Source(sorted(patches), patches.__getitem__, splits, "cells", groups=groups)


def read_photos(channels: int) -> dict[str, np.ndarray]:
    """Read the installed photographs, uint8 (height, width, channels), by name."""
    import_extra("skimage", "photos")
    photos = {}
    for name, (package, inside) in PHOTO_FILES.items():
        with (resources.files(package) / inside).open("rb") as stream, Image.open(stream) as image:
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
        photos[name] = pixels.reshape(*pixels.shape[:2], channels)
    return photos


def divide(pixels: np.ndarray, side: int) -> list[np.ndarray]:
    """Divide an image into a grid of cells of at least `side`, with gaps."""

    def spans(extent: int) -> list[slice]:
        count = max(1, (extent + GAP) // (side + GAP))
        edges = np.linspace(0, extent + GAP, count + 1).round().astype(int).tolist()
        return [slice(start, end - GAP) for start, end in pairwise(edges)]

    return [pixels[rows, columns] for rows, columns in product(*map(spans, pixels.shape[:2]))]


def halve(pixels: np.ndarray) -> np.ndarray:
    """Average over 2 x 2 pixels, rounded half up; an odd last row or column is dropped."""
    height, width = (extent // 2 * 2 for extent in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return ((blocks.sum(axis=(1, 3), dtype=np.int64) + 2) // 4).astype(pixels.dtype)


def starts(extent: int, size: int, stride: float) -> list[int]:
    """Positions of patches along one axis, about a stride apart, from one end to the other."""
    count = 0 if extent < size else round((extent - size) / stride) + 1
    return np.linspace(0, extent - size, count).round().astype(int).tolist()


PHOTOS = SourceType(open_photos)
