"""NumPy files: written in pieces, memory-mapped, and verified by a hash."""

import hashlib
import io
import logging
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.files import (
    atomic_write,
    explain_write_errors,
    is_unchanged,
    locked,
    read_json,
    sync_and_rename,
)
from submanifold.data.sources.stores import Stamp, stamp
from submanifold.data.splits import SPLITS

log = logging.getLogger(__name__)

READ_BYTES = 2**20


class ConditionalArray(np.ndarray):
    """Events (N, ...) with the ``context`` of each; indexing the first axis selects both.

    Example:
        >>> events = with_context(np.zeros((3, 2)), np.array([5, 6, 7]))
        >>> events[1:].context, events.mean(0).context
        (array([6, 7]), None)
    """

    context: np.ndarray | None

    def __array_finalize__(self, other: object) -> None:
        """Results of computations have no context."""
        self.context = None

    def __getitem__(self, index: Any) -> Any:
        """Select events and their contexts; a single event has none."""
        found = super().__getitem__(index)
        rows = index[0] if isinstance(index, tuple) else index
        is_single = isinstance(rows, int | np.integer)
        if isinstance(found, ConditionalArray) and self.context is not None and not is_single:
            found.context = self.context[rows]
        return found


def with_context(events: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """Return events (N, ...) as a :class:`ConditionalArray`, unless the context is None."""
    if context is None:
        return events
    found = events.view(ConditionalArray)
    found.context = context
    return found


def context_of_array(events: np.ndarray) -> np.ndarray | None:
    """Return the context of events, or None."""
    return getattr(events, "context", None)


def context_path(path: Path) -> Path:
    """Return the path of the contexts of the events in a ``.npy`` file."""
    return path.with_name(f"{path.stem}-context.npy")


def load_npy(path: Path) -> np.ndarray:
    """Memory-map a ``.npy`` file copy-on-write, with the context of its events if there is one."""
    file = context_path(path)
    return with_context(np.load(path, mmap_mode="c"), np.load(file) if file.exists() else None)


def save_context(path: Path, context: np.ndarray) -> None:
    """Write the contexts of the events in a ``.npy`` file, for :func:`load_npy`."""
    with atomic_write(context_path(path)) as partial, open(partial, "wb") as file:
        np.save(file, context)


def map_npy(path: Path) -> np.memmap | None:
    """Memory-map a ``.npy`` file copy-on-write; None if it is missing, truncated or changed."""
    try:
        array = np.load(path, mmap_mode="c") if is_unchanged(path) else None
    except (OSError, ValueError, EOFError):
        return None
    return array if isinstance(array, np.memmap) else None


def write_npy(path: Path, chunks: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Write chunks (n, ...) to a float32 ``.npy`` file atomically, unless it exists in this shape.

    Returns a copy-on-write memory map of the file.

    Raises:
        ValueError: If the chunks do not add up to the shape.
        WriteError: If the disk is full or read-only.
    """
    with locked(path.parent, path.name):
        array = map_npy(path)
        if array is not None and (array.shape, array.dtype) == (shape, np.float32):
            return array
        if path.exists():
            log.warning("%s is damaged or has another shape; writing it again", path)
        # not through a memory map: a full disk kills a process that writes to one
        with atomic_write(path) as partial, open(partial, "wb") as file:
            end = file.write(_header(shape, np.float32)) + 4 * math.prod(shape)
            for chunk in chunks:
                file.write(np.asarray(chunk, np.float32).tobytes())
            if file.tell() != end:
                raise ValueError(f"chunks: expected {end} bytes for {shape}, got {file.tell()}.")
        return np.load(path, mmap_mode="c")


@contextmanager
def scatter_npy(
    path: Path, shape: tuple[int, ...]
) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
    """Yield a function of indices (n,) and items (n, ...) that writes items of a float32 array.

    The file is renamed at the end, when all items must be written. Memory is bounded.

    Raises:
        WriteError: The disk is full or read-only.
    """
    with atomic_write(path) as partial:
        with open(partial, "wb") as file:
            start = file.write(_header(shape, np.float32))
            # a full disk would kill a process that writes to a memory map
            os.posix_fallocate(file.fileno(), 0, start + 4 * math.prod(shape))
        array = np.memmap(partial, np.float32, "r+", start, shape)
        memory: mmap.mmap = array._mmap  # type: ignore[attr-defined]

        def write(indices: np.ndarray, items: np.ndarray) -> None:
            order = indices.argsort()
            array[indices[order]] = items[order]
            memory.madvise(mmap.MADV_DONTNEED)  # the pages stay in the cache of the disk

        yield write
        array.flush()


class GrowingArray:
    """A uint8 ``.npy`` file of items of one shape, which can grow after an interruption."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.shape = shape

    def write(self, start: int, items: np.ndarray) -> None:
        """Write items (n, ...) at an index and flush them to the disk."""
        mode = "r+b" if self.partial.exists() else "w+b"
        with explain_write_errors(self.path), open(self.partial, mode) as file:
            file.seek(self._bytes(start))
            file.write(items.tobytes())
            file.flush()
            os.fsync(file.fileno())  # before a saved state counts these items

    def has(self, count: int) -> bool:
        """Whether the first `count` items are on disk."""
        file = self.path if self.path.exists() else self.partial
        return count == 0 or (file.exists() and file.stat().st_size >= self._bytes(count))

    def finish(self, count: int) -> None:
        """Write the header and rename the file, unless this is done."""
        if not self.path.exists():
            with explain_write_errors(self.path), open(self.partial, "r+b") as file:
                file.write(_header((count, *self.shape), np.uint8))
                file.truncate(self._bytes(count))
            sync_and_rename(self.partial, self.path)

    def _bytes(self, count: int) -> int:
        return len(_header((count, *self.shape), np.uint8)) + count * math.prod(self.shape)


def _header(shape: tuple[int, ...], dtype: type) -> bytes:
    """Header of a ``.npy`` file; NumPy pads it to one length for all sizes of the first axis."""
    content = io.BytesIO()
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, fields)
    return content.getvalue()


def hash_arrays(folder: Path) -> str:
    """Hash of a folder's train.npy, valid.npy and test.npy, cached until their stamps change."""
    files = [folder.absolute() / f"{split}.npy" for split in SPLITS]
    return _hash(tuple((file, stamp(file.stat())) for file in files))


def are_intact(folder: Path) -> bool:
    """Whether a folder's arrays have the hash in its manifest.json, if that has one."""
    expected = (read_json(folder / "manifest.json") or {}).get("hash")
    try:
        return expected is None or expected == hash_arrays(folder)
    except (OSError, ValueError, EOFError):  # a bad block of the disk, or a truncated header
        return False


@lru_cache(maxsize=64)
def _hash(files: tuple[tuple[Path, Stamp], ...]) -> str:
    digest = hashlib.sha256()
    for path, _ in files:
        array = np.load(path, mmap_mode="r")
        digest.update(f"{path.stem} {array.shape}".encode())
        with open(path, "rb", buffering=0) as file:  # a bad block in a map would kill the process
            file.seek(array.offset)
            while block := file.read(READ_BYTES):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"
