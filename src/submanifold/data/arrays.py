"""NumPy files: written in pieces, and memory-mapped."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import unexpected
from submanifold.common.files import atomic_write


class ConditionalArray(np.ndarray):
    """Events (N, ...) with the ``context`` of each; indexing the first axis selects both.

    Example:
        >>> events = with_context(np.zeros((3, 2)), np.array([5, 6, 7]))
        >>> events[1:].context, events.mean(0).context
        (array([6, 7]), None)
    """

    context: np.ndarray | None

    def __array_finalize__(self, other: object) -> None:
        self.context = None

    def __getitem__(self, index: Any) -> Any:
        selected = super().__getitem__(index)
        rows = index[0] if isinstance(index, tuple) else index
        is_single = isinstance(rows, int | np.integer)
        if isinstance(selected, ConditionalArray) and self.context is not None and not is_single:
            selected.context = self.context[rows]
        return selected


def with_context(events: np.ndarray, context: np.ndarray | None) -> np.ndarray:
    """Return events (N, ...) with a context (N, ...) of each, unless it is None.

    :class:`.Batches` of them train a conditional model.
    """
    if context is None:
        return events
    if len(context) != len(events):
        raise unexpected("context", f"one row for each of {len(events)} events", len(context))
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


def write_chunks(
    path: Path, chunks: Iterable[np.ndarray], shape: tuple[int, ...], dtype: type
) -> None:
    """Write chunks of events of a shape to a ``.npy`` file atomically, in bounded memory."""
    # not through a memory map: a full disk kills a process that writes to one
    with atomic_write(path) as partial, open(partial, "wb") as file:

        def write_header(count: int) -> None:  # of one length for all counts
            descr = np.dtype(dtype).str
            fields = {"descr": descr, "fortran_order": False, "shape": (count, *shape)}
            np.lib.format.write_array_header_1_0(file, fields)

        write_header(0)
        written = sum(file.write(np.asarray(chunk, dtype).tobytes()) for chunk in chunks)
        file.seek(0)
        write_header(written // (np.dtype(dtype).itemsize * math.prod(shape)))
