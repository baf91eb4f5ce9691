"""NumPy files: written in pieces, memory-mapped, and verified by a hash."""

import hashlib
import io
import logging
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.files import atomic_write, is_unchanged, locked, read_json
from submanifold.data.splits import SPLITS

log = logging.getLogger(__name__)


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
        selected = super().__getitem__(index)
        rows = index[0] if isinstance(index, tuple) else index
        is_single = isinstance(rows, int | np.integer)
        if isinstance(selected, ConditionalArray) and self.context is not None and not is_single:
            selected.context = self.context[rows]
        return selected


def with_context(events: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """Return events (N, ...) as a :class:`ConditionalArray`, unless the context is None."""
    if context is None:
        return events
    conditional = events.view(ConditionalArray)
    conditional.context = context
    return conditional


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
    """Write chunks (n, ...) to a float32 ``.npy`` file, unless it exists in this shape.

    Returns a copy-on-write memory map of the file. For errors see :func:`write_chunks`.
    """
    with locked(path.parent, path.name):
        array = map_npy(path)
        if array is None or (array.shape, array.dtype) != (shape, np.float32):
            if path.exists():
                log.warning("%s is damaged or has another shape; writing it again", path)
            write_chunks(path, chunks, shape[1:], np.float32, shape[0])
        return np.load(path, mmap_mode="c")


def write_chunks(
    path: Path, chunks: Iterable[np.ndarray], shape: tuple[int, ...], dtype: type,
    expected: int | None = None,
) -> None:  # fmt: skip
    """Write chunks of events of a shape to a ``.npy`` file atomically, in bounded memory.

    Raises:
        ValueError: If they are not the expected number of events.
        WriteError: If the disk is full or read-only.
    """
    # not through a memory map: a full disk kills a process that writes to one
    with atomic_write(path) as partial, open(partial, "wb") as file:
        start = file.write(_header((0, *shape), dtype))
        written = sum(file.write(np.asarray(chunk, dtype).tobytes()) for chunk in chunks)
        count, rest = divmod(written, np.dtype(dtype).itemsize * math.prod(shape))
        if rest or expected not in (None, count):
            raise ValueError(f"chunks: expected {expected} events of {shape}, got {written} bytes.")
        file.seek(0)
        if file.write(_header((count, *shape), dtype)) != start:
            raise ValueError("The length of NumPy's header depends on the number of events.")


def _header(shape: tuple[int, ...], dtype: type) -> bytes:
    """Header of a ``.npy`` file; NumPy pads it to one length for all sizes of the first axis."""
    content = io.BytesIO()
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, fields)
    return content.getvalue()


def are_intact(folder: Path) -> bool:
    """Whether a folder's arrays have the hash in its manifest.json, if that has one."""
    expected = (read_json(folder / "manifest.json") or {}).get("hash")
    try:
        return expected is None or expected == hash_arrays(folder)
    except (OSError, ValueError, EOFError):  # a bad block of the disk, or a truncated header
        return False


def hash_arrays(folder: Path) -> str:
    """Hash of a folder's train.npy, valid.npy and test.npy, cached until a file changes."""
    files = [folder.absolute() / f"{split}.npy" for split in SPLITS]
    stats = [file.stat() for file in files]
    stamps = ((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats)
    return _hash(tuple(files), tuple(stamps))


@lru_cache(maxsize=64)
def _hash(files: tuple[Path, ...], stamps: tuple[tuple[int, ...], ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        array = np.load(path, mmap_mode="r")
        digest.update(f"{path.stem} {array.shape}".encode())
        with open(path, "rb", buffering=0) as file:  # a bad block in a map would kill the process
            file.seek(array.offset)
            while block := file.read(2**20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"
