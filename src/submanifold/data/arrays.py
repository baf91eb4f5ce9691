"""Arrays on disk that are written row by row."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write_rows(path: Path, chunks: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Write chunks of rows to a ``.npy`` file that appears when it is whole, or find it there.

    Args:
        path: The file.
        chunks: Arrays (rows, ...), in order; not touched when the file is there.
        shape: Shape of all of it.

    Returns:
        The file as a float32 map in copy-on-write mode.
    """
    if not path.exists():
        partial = path.with_name(path.name + ".part")
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for chunk in chunks:
            array[start : start + len(chunk)] = chunk
            start += len(chunk)
        array.flush()
        os.replace(partial, path)
    return np.load(path, mmap_mode="c")
