"""Patches of the colour photographs that scikit-image and scikit-learn carry in their wheels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from itertools import pairwise, product

import numpy as np
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings
from submanifold.data.source import Source

FILES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
ROOM = 32
"""Pixels by which a patch can move inside a cell: the least side of a cell is size + ROOM."""
GAP = 8
"""Pixels between cells, which belong to none; no 8 x 8 block of a JPEG lies in two cells."""
WANTED = 8000
LARGEST = 128
FINGERPRINT = "photos:2"


def photo_patches(
    settings: ImageSettings, photos: Mapping[str, np.ndarray] | None = None
) -> Source:
    """Square patches of photographs, in cells of which each belongs to one split.

    Each photograph is cut into a grid of cells of at least size + 32 pixels a side, with gaps of 8
    pixels between them. Each cell belongs to one split (80/10/10 in cells, by seed), so that no two
    splits share a pixel. Patches are taken inside a cell, at full resolution and, where the cell
    holds one, at half: an average over 2 x 2 pixels of that cell alone. Patches of one cell overlap
    and are not independent: the cells are the groups of the images. The stride is the one that
    gives closest to 8,000 patches. Names are `photo/cell/resolution/top-left`.

    Args:
        settings: `size`, `channels` and `seed` are used.
        photos: Name -> integer array (height, width, channels); those in the wheels by default.

    Raises:
        UserError: If a cell does not hold a patch of that size.
    """
    size = settings.size
    photos = read_photos(settings.channels) if photos is None else photos
    largest = min(LARGEST, *(min(pixels.shape[:2]) for pixels in photos.values()))
    if size > largest:
        raise UserError(
            f"size={size} is too large for source=photos, which has patches of up to {largest} "
            f"pixels; set size to {largest} or less, or another source"
        )
    cells = {
        (photo, cell): pixels[top:bottom, left:right]
        for photo, pixels in photos.items()
        for cell, (top, bottom, left, right) in enumerate(grid(pixels.shape, size + ROOM))
    }
    tiles = {(*cell, "full"): pixels for cell, pixels in cells.items()}
    tiles |= {(*cell, "half"): halve(pixels) for cell, pixels in cells.items()}
    shapes = Counter(tile.shape[:2] for tile in tiles.values())

    def excess(stride: float) -> int:
        each = (tiles_of * math.prod(count(extent, size, stride) for extent in shape)
                for shape, tiles_of in shapes.items())  # fmt: skip
        return abs(sum(each) - WANTED)

    # a stride that is one pixel longer may leave a third of the patches
    stride = min(np.arange(4, size + ROOM, 0.25).tolist(), key=excess)
    split = assign(list(cells), settings.seed)
    patches, parts, groups = {}, {}, {}
    for (photo, cell, scale), tile in tiles.items():
        corners = product(*(starts(extent, size, stride) for extent in tile.shape[:2]))
        for top, left in corners:
            name = f"{photo}/{cell:03d}/{scale}/{top:03d}-{left:03d}"
            patches[name] = tile[top : top + size, left : left + size].transpose(2, 0, 1)
            parts[name], groups[name] = split[photo, cell], f"{photo}/{cell:03d}"
    return Source(
        names=sorted(patches),
        read=patches.__getitem__,
        decode=np.asarray,
        parts=parts,
        rule="cells",
        crop=f"patches inside cells of at least {size + ROOM} x {size + ROOM} pixels",
        groups=groups,
    )


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


def grid(shape: tuple[int, ...], side: int) -> list[tuple[int, int, int, int]]:
    """As many cells as fit into an image (height, width, ...) with gaps between them.

    They have about equal sides, of at least `side` where the image is that large.

    Returns:
        (top, bottom, left, right) of each.
    """

    def spans(extent: int) -> list[tuple[int, int]]:
        count = max(1, (extent + GAP) // (side + GAP))
        edges = np.linspace(0, extent + GAP, count + 1).round().astype(int).tolist()
        return [(start, end - GAP) for start, end in pairwise(edges)]

    return [(*rows, *columns) for rows, columns in product(*map(spans, shape[:2]))]


def halve(pixels: np.ndarray) -> np.ndarray:
    """Average over 2 x 2 pixels, rounded half up; an odd last row or column is left out."""
    height, width = (extent // 2 * 2 for extent in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return ((blocks.sum(axis=(1, 3), dtype=np.int64) + 2) // 4).astype(pixels.dtype)


def count(extent: int, size: int, stride: float) -> int:
    """How many patches there are along one axis."""
    return 0 if extent < size else round((extent - size) / stride) + 1


def starts(extent: int, size: int, stride: float) -> list[int]:
    """Where patches begin along one axis: about a stride apart, the last one flush with the end."""
    patches = count(extent, size, stride)
    return np.linspace(0, extent - size, patches).round().astype(int).tolist()


def assign(cells: list[tuple[str, int]], seed: int) -> dict[tuple[str, int], str]:
    """Cells to splits: of every ten, in an order shuffled within each photograph, 8, 1 and 1.

    Counting on from one photograph to the next gives each split cells of nearly all of them.
    """
    rng = np.random.default_rng(seed)
    order = sorted(cells, key=lambda cell: (cell[0], rng.random()))
    return {cell: {4: "valid", 9: "test"}.get(i % 10, "train") for i, cell in enumerate(order)}
