"""Patches of the colour photographs that scikit-image and scikit-learn carry in their wheels."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image

from submanifold.data.settings import ImageSettings
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


class Patch(NamedTuple):
    """A square of a tile: a cell of a photograph at one resolution."""

    photo: str
    cell: int
    scale: str
    top: int
    left: int

    def __str__(self) -> str:
        return f"{self.photo}/{self.cell:02d}/{self.scale}/{self.top:03d}-{self.left:03d}"


class Photos:
    """Square patches of photographs, split so that no two splits share a pixel.

    Each photograph is cut into a grid of cells of about 128 x 128 pixels and each cell belongs to
    one split (80/10/10 in cells, by seed). Patches are taken inside a cell, at full resolution
    and, where the cell still holds one, at half: an average over 2 x 2 pixels of that cell alone.
    The stride is the one that gives closest to 8,000 patches.

    Args:
        settings: `size` and `channels` are used.
        photos: Name -> integer array (height, width, channels); those in the wheels by default.

    Raises:
        UserError: If a cell does not hold a patch of that size.
    """

    rule = "cells"
    crop = f"patches inside cells of about {CELL}x{CELL}"
    note: str | None = None

    def __init__(
        self, settings: ImageSettings, photos: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.skipped: list[dict[str, str]] = []
        self.size = size = settings.size
        photos = read_photos(settings.channels) if photos is None else photos
        self._tiles: dict[tuple[str, int, str], np.ndarray] = {}
        smallest = CELL
        for photo, pixels in photos.items():
            for cell, (top, bottom, left, right) in enumerate(grid(*pixels.shape[:2])):
                full = pixels[top:bottom, left:right]
                smallest = min(smallest, *full.shape[:2])
                self._tiles[photo, cell, "full"] = full
                self._tiles[photo, cell, "half"] = halve(full)
        if size > smallest:
            raise UserError(
                f"data.size={size} is too large for data.source=photos, whose regions hold "
                f"{smallest} pixels; set data.size to {smallest} or less, or another data.source"
            )

        def count(stride: int) -> int:
            return sum(
                len(starts(tile.shape[0], size, stride)) * len(starts(tile.shape[1], size, stride))
                for tile in self._tiles.values()
            )

        stride = min(range(4, CELL), key=lambda stride: abs(count(stride) - WANTED))
        patches = (
            Patch(*key, top, left)
            for key, tile in self._tiles.items()
            for top in starts(tile.shape[0], size, stride)
            for left in starts(tile.shape[1], size, stride)
        )
        self._patches = {str(patch): patch for patch in patches}
        self._part = assign([key[:2] for key in self._tiles if key[2] == "full"], settings.seed)

    def names(self) -> list[str]:
        """`photo/cell/resolution/top-left` of each patch, sorted."""
        return sorted(self._patches)

    def parts(self) -> dict[str, str]:
        """The split of each patch."""
        return {name: self._part[patch[:2]] for name, patch in self._patches.items()}

    def image(self, name: str) -> np.ndarray:
        """One patch, shape (channels, size, size)."""
        patch = self._patches[name]
        tile = self._tiles[patch.photo, patch.cell, patch.scale]
        rows = slice(patch.top, patch.top + self.size)
        columns = slice(patch.left, patch.left + self.size)
        return tile[rows, columns].transpose(2, 0, 1)

    def close(self) -> None:
        """Nothing stays open."""


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
                f"the installed {package} does not carry {inside}, which data.source=photos needs; "
                "install the version in constraints.txt, or set data.source=folder and data.path"
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
    return [
        (top, bottom, left, right)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


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
