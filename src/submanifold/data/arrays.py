"""Arrays on disk that are written piece by piece and are whole when they have their name."""

import io
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from submanifold.common.files import atomic_write, explain_write_errors, locked, sync_and_rename

log = logging.getLogger(__name__)


def map_whole(path: Path) -> np.memmap | None:
    """Map a ``.npy`` file copy-on-write; None where there is none, or not all its header says."""
    try:
        array = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return array if isinstance(array, np.memmap) else None


def write_rows(path: Path, chunks: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Write chunks of rows to a ``.npy`` file that appears when it is whole, or find it there.

    A file that is not whole or has another shape is made anew, with a line in the log.

    Args:
        path: The file.
        chunks: Arrays (rows, ...), in order; not touched when the file is there.
        shape: Of all rows.

    Returns:
        A float32 map of the file, in copy-on-write mode.

    Raises:
        ValueError: If the chunks have not the shape.
        WriteError: If the disk is full or may only be read.
    """
    with locked(path.parent, path.name):
        array = map_whole(path)
        if array is not None and (array.shape, array.dtype) == (shape, np.float32):
            return array
        if path.exists():
            log.warning("%s is not whole, or of another shape: it is made anew", path)
        # No map: a full disk kills a process that writes to one.
        with atomic_write(path) as partial, open(partial, "wb") as file:
            end = file.write(header(shape, np.float32)) + 4 * math.prod(shape)
            count = 0
            for chunk in chunks:
                file.write(np.asarray(chunk, np.float32).tobytes())
                count += len(chunk)
            if file.tell() != end:
                raise ValueError(f"chunks of {count} rows do not fill the shape {shape}")
        return np.load(path, mmap_mode="c")


def header(shape: tuple[int, ...], dtype: type) -> bytes:
    """The first bytes of a ``.npy`` file.

    NumPy pads them so that the first axis can grow in place: they have one length for all counts.
    """
    content = io.BytesIO()
    form = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, form)
    return content.getvalue()


class GrowingArray:
    """A uint8 .npy file of rows of one shape, that grows under another name until it is whole."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.shape = shape

    def write(self, start: int, rows: np.ndarray) -> None:
        """Put rows at an index, over what an interrupted run may have left there.

        Raises:
            WriteError: If the disk is full or may only be read.
        """
        mode = "r+b" if self.partial.exists() else "w+b"
        with explain_write_errors(self.path), open(self.partial, mode) as file:
            file.seek(self._bytes(start))
            file.write(rows.tobytes())
            file.flush()
            # The state that counts these rows must not reach the disk before they do.
            os.fsync(file.fileno())

    def holds(self, count: int) -> bool:
        """Whether that many rows are on disk."""
        file = self.path if self.path.exists() else self.partial
        return count == 0 or (file.exists() and file.stat().st_size >= self._bytes(count))

    def finish(self, count: int) -> None:
        """Give the file its header and its name; nothing to do if it has them."""
        if not self.path.exists():
            with explain_write_errors(self.path), open(self.partial, "r+b") as file:
                file.write(header((count, *self.shape), np.uint8))
                file.truncate(self._bytes(count))
            sync_and_rename(self.partial, self.path)

    def _bytes(self, count: int) -> int:
        return len(header((count, *self.shape), np.uint8)) + count * math.prod(self.shape)
