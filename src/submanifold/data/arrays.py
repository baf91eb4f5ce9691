"""NumPy files, written in pieces and memory-mapped, and prepared data."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import unexpected
from submanifold.common.files import atomic_write, locked, read_json, write_json
from submanifold.data.splits import SPLITS

log = logging.getLogger(__name__)

Prepared = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""Copy-on-write memory maps of train, valid and test, and the manifest."""
Sidecars = dict[str, dict[str, list[Any]]]
"""Labels, groups and rows, if there are any: lists by split, in the order of the arrays."""
Written = tuple[dict[str, Any], Sidecars]

MANIFEST = "manifest.json"
SIDECARS = ("labels", "groups", "rows")


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
        selects_rows = not isinstance(rows, int | np.integer) and np.ndim(rows) < 2
        if isinstance(selected, ConditionalArray) and self.context is not None and selects_rows:
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
    """Memory-map a ``.npy`` file copy-on-write, with the context of its events if there is one.

    A ValueError is raised for a file that differs from the hash in the manifest of its folder.
    """
    file, manifest = context_path(path), read_json(path.parent / MANIFEST) or {}
    for name in {path.name, file.name} & manifest.get("sha256", {}).keys():
        status = (path.parent / name).stat()
        digest = _hash_once(path.parent / name, status.st_size, status.st_mtime_ns)
        if digest != manifest["sha256"][name]:
            raise ValueError(f"other bytes than those in {MANIFEST}")
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


def prepare_once(
    folder: Path, what: str, key: dict[str, Any], write: Callable[[], Written]
) -> Prepared:
    """Write arrays, their sidecar files and a manifest, unless those of this key exist."""
    files = [folder / f"{split}.npy" for split in SPLITS]
    with locked(folder, what):
        manifest: dict[str, Any] = read_json(folder / MANIFEST) or {}
        if manifest | key != manifest or not _is_complete(folder, manifest):
            if manifest:
                log.warning(
                    "the arrays in %s are of other data, or some are missing; preparing them again",
                    folder,
                )
            old = [folder / f"{name}.json" for name in ("manifest", *SIDECARS)]
            for file in [*old, *map(context_path, files)]:  # the arrays are replaced
                file.unlink(missing_ok=True)
            began, (manifest, sidecars) = time.monotonic(), write()
            for name, values in sidecars.items():
                write_json(folder / f"{name}.json", values)
            counts = [len(np.load(file, mmap_mode="r")) for file in files]
            written = [file for file in [*files, *map(context_path, files)] if file.exists()]
            hashes, groups = (
                {file.name: _hash(file) for file in written},
                sidecars.get("groups", {}),
            )
            of_arrays = "".join(hashes[file.name] for file in files)
            manifest |= {
                "counts": dict(zip(SPLITS, counts, strict=True)),
                "groups": {split: len({*numbers}) for split, numbers in groups.items()} or None,
                "hash": f"sha256:{hashlib.sha256(of_arrays.encode()).hexdigest()}",
                "sha256": hashes,
                "sidecars": [*sidecars],
                "seconds": round(time.monotonic() - began, 2),
                **key,
            }
            write_json(folder / MANIFEST, manifest)
    train, valid, test = (np.load(file, mmap_mode="c") for file in files)
    return train, valid, test, manifest


def _is_complete(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the files of a manifest exist, and those of JSON are whole."""
    arrays, sidecars = manifest.get("sha256", {}), manifest.get("sidecars", ())
    return (
        bool(arrays)
        and all((folder / name).exists() for name in arrays)
        and all(read_json(folder / f"{name}.json") is not None for name in sidecars)
    )


@lru_cache
def _hash_once(path: Path, size: int, changed: int) -> str:
    """Hash a file, once in a process unless its size or its time of change differs."""
    return _hash(path)


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sidecar(folder: Path, name: str) -> dict[str, list[Any]]:
    """Read ``labels``, ``groups`` or ``rows`` of prepared events by split; empty without them."""
    return read_json(folder / f"{name}.json") or {}
