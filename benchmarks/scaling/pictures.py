"""As many small pictures as one wants: crops of the photographs in the installed packages."""

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

from submanifold.data.sources.photos import read_photos

BLOCK = 10_000
FILES_IN_FOLDER = 1000


def pictures(first: int, count: int, size: int, kind: str = "JPEG") -> list[bytes]:
    """Encode pictures; each is a different function of its number."""
    return [_picture(number, size, kind) for number in range(first, first + count)]


def _picture(number: int, size: int, kind: str) -> bytes:
    rng = np.random.default_rng(number)
    photos = _photos()
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(size, max(size + 1, min(photo.size) // 2)))
    left, top = (int(rng.integers(extent - side)) for extent in photo.size)
    image = photo.resize(
        (size, size), Image.Resampling.NEAREST, (left, top, left + side, top + side)
    )
    pixels = np.asarray(image) * rng.uniform(0.7, 1) + rng.uniform(0, 40)
    pixels = pixels[:, :: 1 if rng.random() < 0.5 else -1]
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, kind, quality=85)
    return content.getvalue()


@lru_cache(maxsize=1)
def _photos() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in read_photos(3).values()]


def blocks(count: int, size: int) -> Iterator[tuple[int, list[bytes]]]:
    """Blocks of encoded pictures by all cores, each with the number of its first."""
    starts = range(0, count, BLOCK)
    counts = [min(BLOCK, count - start) for start in starts]
    with ProcessPoolExecutor() as pool:
        yield from zip(starts, pool.map(pictures, starts, counts, repeat(size)), strict=True)


def make_lmdb(folder: Path, count: int, size: int) -> None:
    """An LMDB of encoded pictures under keys of 40 digits, as LSUN's is."""
    database = lmdb.open(str(folder), map_size=2**36)
    for start, block in blocks(count, size):
        with database.begin(write=True) as writer:
            for number, content in enumerate(block, start):
                writer.put(b"%040x" % number, content, append=True)
    database.close()


def make_tree(folder: Path, count: int, size: int) -> None:
    """A tree of files, a thousand in each folder; their pictures repeat after ten thousand."""
    contents = pictures(0, BLOCK, size)
    for start in range(0, count, FILES_IN_FOLDER):
        below = folder / f"{start // FILES_IN_FOLDER:05d}"
        below.mkdir(parents=True)
        for number in range(start, min(start + FILES_IN_FOLDER, count)):
            (below / f"{number:08d}.jpg").write_bytes(contents[number % BLOCK])
