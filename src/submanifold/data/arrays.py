"""NumPy files, written in pieces and memory-mapped, and prepared data."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.files import atomic_write, hash_file, locked, read_json, write_json
from submanifold.data.events import Events
from submanifold.data.splits import SPLITS

log = logging.getLogger(__name__)

Prepared = tuple[Events, Events, Events, dict[str, Any]]
"""Train, valid and test as copy-on-write memory maps, and the manifest."""
Sidecars = dict[str, dict[str, list[Any]]]
"""What else events have, if anything: lists by split, in the order of the arrays."""
Written = tuple[dict[str, Any], Sidecars]

MANIFEST = "manifest.json"
SIDECARS = ("labels", "groups", "rows", "changes")


def context_path(path: Path) -> Path:
    """Return the path of the contexts of the events in a ``.npy`` file."""
    return path.with_name(f"{path.stem}-context.npy")


def _groups_path(path: Path) -> Path:
    """Return the path of the groups of events that are no split of prepared data."""
    return path.with_name(f"{path.stem}_groups.json")


def load_events(path: Path) -> Events:
    """Memory-map events in a ``.npy`` file copy-on-write, with what belongs to them.

    That is their context and groups, and :data:`SIDECARS` in the splits of prepared data. A
    ValueError is raised for a file that differs from the hash in the manifest of its folder.
    """
    manifest = read_json(path.parent / MANIFEST) or {}
    names = {path.name, context_path(path).name}
    for name in names & manifest.get("sha256", {}).keys():
        if hash_file(path.parent / name) != manifest["sha256"][name]:
            raise ValueError(f"other bytes than those in {MANIFEST}")
    is_split = path.name in manifest.get("sha256", {})
    return _open(path, manifest["sidecars"] if is_split else ())


def _open(path: Path, sidecars: Iterable[str]) -> Events:
    parts, lists = {}, {name: path.with_name(f"{name}.json") for name in sidecars}
    if _groups_path(path).exists():
        lists["groups"] = _groups_path(path)
    for name, file in lists.items():
        if (by_split := read_json(file)) is None:
            raise ValueError(f"{file.name} is missing or damaged")
        if path.stem in by_split:
            parts[name] = np.array(by_split[path.stem], object if name == "labels" else None)
    if context_path(path).exists():
        parts["context"] = np.load(context_path(path))
    return Events(np.load(path, mmap_mode="c"), **parts)


def save_events(path: Path, events: Events) -> None:
    """Write events, their contexts and their groups, for :func:`load_events`."""
    if events.context is not None:
        save_context(path, events.context)
    else:
        context_path(path).unlink(missing_ok=True)
    if events.groups is not None:
        write_json(_groups_path(path), {path.stem: events.groups.tolist()})
    else:
        _groups_path(path).unlink(missing_ok=True)
    with atomic_write(path) as partial, open(partial, "wb") as file:
        np.save(file, events.x)


def save_context(path: Path, context: np.ndarray) -> None:
    """Write the contexts of the events in a ``.npy`` file."""
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
            contexts = [*map(context_path, files)]
            for file in [*old, *contexts]:  # the arrays are replaced
                file.unlink(missing_ok=True)
            began, (manifest, sidecars) = time.monotonic(), write()
            for name, values in sidecars.items():
                write_json(folder / f"{name}.json", values)
            counts = [len(np.load(file, mmap_mode="r")) for file in files]
            written = [file for file in [*files, *contexts] if file.exists()]
            hashes, groups = (
                {file.name: hash_file(file) for file in written},
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
    train, valid, test = (_open(file, manifest["sidecars"]) for file in files)
    return train, valid, test, manifest


def _is_complete(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the files of a manifest exist, and those of JSON are whole."""
    arrays, sidecars = manifest.get("sha256", {}), manifest.get("sidecars", ())
    return (
        bool(arrays)
        and all((folder / name).exists() for name in arrays)
        and all(read_json(folder / f"{name}.json") is not None for name in sidecars)
    )
