"""From a source to one uint8 array on disk for each split, and a manifest of what happened."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.data.images import Source, fingerprint, open_source
from submanifold.data.settings import PARTS, Counts, ImageSettings
from submanifold.errors import UserError
from submanifold.progress import Meter
from submanifold.validation import read_settings

log = logging.getLogger(__name__)

# Part of every key: a change in how pixels are made must not find arrays made the old way.
FORMAT = 1
CHUNK_IMAGES = 1024
CHUNK_BYTES = 2**25
LISTED = 1000
ALLOWED_PERCENT = 1


def prepare(
    settings: Mapping[str, Any], folder: Path, raw_folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Crop, resize and split a source into memory-mapped arrays.

    Images stream from the source to disk in chunks, so memory does not grow with their number. A
    call that finds finished work returns it; one that finds half of it (after a kill) goes on
    from the last chunk and ends with the same bytes.

    Args:
        settings: What `ImageSettings` takes.
        folder: Gets train.npy, valid.npy, test.npy and, when they are whole, manifest.json.
        raw_folder: Holds downloads.

    Returns:
        train, valid, test: uint8 (N, channels, size, size), copy-on-write maps of the files.
        manifest: source, path, counts, crop, size, channels, split, split_note, seed, hash
            (SHA-256 of the arrays), fingerprint, skipped (`{"name", "reason"}`, the first 1,000),
            skipped_count, seconds.

    Raises:
        UserError: If the settings or the source cannot work, or more than 1% of it is broken.
    """
    options = read_settings(ImageSettings, settings, "data")
    folder, raw_folder = Path(folder), Path(raw_folder)
    identity = fingerprint(options, raw_folder)
    manifest = _finished(folder, options, identity)
    if manifest is None:
        folder.mkdir(parents=True, exist_ok=True)
        with closing(open_source(options, raw_folder)) as source:
            manifest = _run(source, options, folder, identity)
    train, valid, test = (np.load(folder / f"{part}.npy", mmap_mode="c") for part in PARTS)
    return train, valid, test, manifest


# ---- who goes where


@dataclass
class Share:
    """A split's claim on a pool: exactly `count` images, or at most that many."""

    part: str
    count: int
    exact: bool = True


@dataclass
class Pool:
    """Names in the order they are read, and the splits they fill one after the other."""

    names: Sequence[str]
    shares: list[Share]


def plan(source: Source, counts: Counts, seed: int) -> list[Pool]:
    """Shuffle by the seed and share out.

    A source with splits of its own gives one pool for each; otherwise one pool feeds all three.

    Raises:
        UserError: If there are fewer images than asked for, or too few for three splits.
    """
    names, parts = source.names(), source.parts()
    if parts is None:
        order = np.random.default_rng(seed).permutation(len(names))
        return [Pool([names[i] for i in order], share_out(len(names), counts))]
    pools = []
    for index, part in enumerate(PARTS):
        members = [name for name in names if parts[name] == part]
        wanted = getattr(counts, part)
        if not members:
            raise UserError(
                f"the {source.rule} split leaves no {part} images; set data.split=random, or give "
                "the whole data set as data.path"
            )
        if wanted is not None and wanted > len(members):
            raise UserError(
                f"data.counts.{part}={wanted}, but the {source.rule} split has {len(members)} "
                f"{part} images; set data.counts.{part} to {len(members)} or less"
            )
        order = np.random.default_rng([seed, index]).permutation(len(members))
        share = Share(part, wanted or len(members), exact=wanted is not None)
        pools.append(Pool([members[i] for i in order], [share]))
    return pools


def share_out(total: int, counts: Counts) -> list[Share]:
    """Sizes of a random split: what is given exactly, else 10% for valid and test, train the rest.

    With train given and test not, test is the rest. The share that takes the rest comes last: it
    is the one that broken files make smaller.

    Raises:
        UserError: If `total` images are too few.
    """
    given = {part: count for part in PARTS if (count := getattr(counts, part)) is not None}
    open_parts = [part for part in PARTS if part not in given]
    spare = total - sum(given.values())
    if spare < len(open_parts):
        asked = ", ".join(f"data.counts.{part}={count}" for part, count in given.items())
        raise UserError(
            f"{total} images are too few for three splits{' with ' if asked else ''}{asked}; give "
            "at least three images in data.path, or smaller data.counts"
        )
    rest = next((part for part in ("train", "test") if part in open_parts), None)
    tenth = max(1, min(total // 10, spare // max(1, len(open_parts))))
    shares = [Share(part, count) for part, count in given.items()]
    shares += [Share(part, tenth) for part in open_parts if part != rest]
    if rest:
        shares.append(Share(rest, total - sum(share.count for share in shares), exact=False))
    return shares


# ---- the arrays on disk


class GrowingArray:
    """A .npy file that grows under another name until it is whole."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.shape, self.item_bytes = shape, int(np.prod(shape))

    def write(self, start: int, images: np.ndarray) -> None:
        """Put images at an index, over what an interrupted run may have left there."""
        with open(self.partial, "r+b" if self.partial.exists() else "w+b") as file:
            file.seek(len(self._header(0)) + start * self.item_bytes)
            file.write(images.tobytes())
            file.flush()
            # The state that counts these images must not reach the disk before they do.
            os.fsync(file.fileno())

    def holds(self, count: int) -> bool:
        """Whether that many images are on disk."""
        file = self.path if self.path.exists() else self.partial
        need = len(self._header(count)) + count * self.item_bytes
        return count == 0 or (file.exists() and file.stat().st_size >= need)

    def finish(self, count: int) -> None:
        """Give the file its header and its name; nothing to do if it has them."""
        if self.path.exists():
            return
        with open(self.partial, "r+b") as file:
            file.write(self._header(count))
            file.truncate(len(self._header(count)) + count * self.item_bytes)
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)

    def remove(self) -> None:
        """Forget what was written."""
        self.path.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)

    def _header(self, count: int) -> bytes:
        # NumPy pads a header so that its first axis can grow in place: all have one length.
        header = io.BytesIO()
        form = {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(header, form)
        return header.getvalue()


@dataclass
class State:
    """How far a run came; written after each chunk."""

    key: str
    read: list[int]
    written: dict[str, int]
    broken: list[dict[str, str]]
    broken_count: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Replace the file in one step."""
        _write_json(path, vars(self))


# ---- the run


def _run(source: Source, options: ImageSettings, folder: Path, identity: str) -> dict[str, Any]:
    pools = plan(source, options.counts, options.seed)
    shape = (options.channels, options.size, options.size)
    arrays = {part: GrowingArray(folder / f"{part}.npy", shape) for part in PARTS}
    key = _key(options, identity)
    state = _resume(folder, key, arrays, len(pools))
    started, before = time.monotonic(), state.seconds
    total = sum(share.count for pool in pools for share in pool.shares)
    done = sum(state.written.values())
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads,
        Meter("preparing images", "images", total, done) as meter,
    ):
        for index, pool in enumerate(pools):
            for names in _chunks(pool, index, state, shape):
                results = list(threads.map(lambda name: _attempt(source, name), names))
                images = [result for result in results if isinstance(result, np.ndarray)]
                _count_broken(state, names, results, total)
                for part, start, batch in _deal(images, pool.shares, state.written):
                    arrays[part].write(start, batch)
                    state.written[part] += len(batch)
                state.read[index] += len(names)
                state.seconds = before + time.monotonic() - started
                state.save(folder / "state.json")
                meter.update(len(images))
    log.info("%s", meter)
    _check_filled(pools, state)
    for part, array in arrays.items():
        array.finish(state.written[part])
    skipped = source.skipped + state.broken
    manifest = {
        "key": key,
        "source": options.source,
        "path": options.path,
        "counts": state.written,
        "crop": source.crop,
        "size": options.size,
        "channels": options.channels,
        "split": source.rule,
        "split_note": source.note,
        "seed": options.seed,
        "hash": _hash(folder),
        "fingerprint": identity,
        "skipped": skipped[:LISTED],
        "skipped_count": len(source.skipped) + state.broken_count,
        "seconds": round(before + time.monotonic() - started, 2),
    }
    _write_json(folder / "manifest.json", manifest)
    (folder / "state.json").unlink(missing_ok=True)
    return manifest


def _chunks(
    pool: Pool, index: int, state: State, shape: tuple[int, ...]
) -> Iterator[Sequence[str]]:
    """Names to read next, never more than the splits still want."""
    most = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // int(np.prod(shape))))
    while True:
        wanted = sum(share.count - state.written[share.part] for share in pool.shares)
        at = state.read[index]
        names = pool.names[at : at + min(most, wanted)]
        if not names:
            return
        yield names


def _attempt(source: Source, name: str) -> np.ndarray | str:
    try:
        return source.image(name)
    except Exception as error:  # PIL's plugins raise nearly every kind on a broken file
        return f"{type(error).__name__}: {error}"


def _deal(
    images: list[np.ndarray], shares: list[Share], written: Mapping[str, int]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Images -> (split, index, batch), filling the shares one after the other."""
    for share in shares:
        start = written[share.part]
        batch, images = images[: share.count - start], images[share.count - start :]
        if batch:
            yield share.part, start, np.stack(batch)


def _count_broken(
    state: State, names: Sequence[str], results: list[np.ndarray | str], total: int
) -> None:
    for name, result in zip(names, results, strict=True):
        if isinstance(result, str):
            state.broken_count += 1
            if len(state.broken) < LISTED:
                state.broken.append({"name": name, "reason": result})
    if 100 * state.broken_count > ALLOWED_PERCENT * total:
        first = "; ".join(f"{item['name']} ({item['reason']})" for item in state.broken[:3])
        raise UserError(
            f"more than {ALLOWED_PERCENT}% of {total} images cannot be read: "
            f"{state.broken_count} so far, such as {first}; mend or remove them, or set data.path "
            "to other images"
        )


def _check_filled(pools: list[Pool], state: State) -> None:
    for pool in pools:
        for share in pool.shares:
            have = state.written[share.part]
            if have < (share.count if share.exact else 1):
                raise UserError(
                    f"only {have} readable images are left for {share.part}, of {share.count} "
                    f"wanted ({state.broken_count} were broken); set data.counts.{share.part} to "
                    "fewer, or give more images in data.path"
                )


def _resume(folder: Path, key: str, arrays: Mapping[str, GrowingArray], pools: int) -> State:
    try:
        state = State(**json.loads((folder / "state.json").read_text()))
        if state.key == key and all(arrays[p].holds(state.written[p]) for p in PARTS):
            log.info("going on after %d images of an interrupted run", sum(state.read))
            return state
    except (OSError, ValueError, TypeError, KeyError):
        pass
    for name in ("manifest.json", "state.json"):
        (folder / name).unlink(missing_ok=True)
    for array in arrays.values():
        array.remove()
    return State(key, [0] * pools, dict.fromkeys(PARTS, 0), [])


def _finished(folder: Path, options: ImageSettings, identity: str) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if identity == "missing":
            # The arrays outlive a source that was moved away.
            identity = manifest["fingerprint"]
        if manifest["key"] != _key(options, identity):
            log.info("%s holds arrays of other settings or data; making them anew", folder)
            return None
        shape = (options.channels, options.size, options.size)
        arrays = {part: GrowingArray(folder / f"{part}.npy", shape) for part in PARTS}
        counts = manifest["counts"]
        whole = all(a.path.exists() and a.holds(counts[part]) for part, a in arrays.items())
        return manifest if whole else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _key(options: ImageSettings, identity: str) -> str:
    # The fingerprint says what the data are; where they lie changes nothing.
    settings = options.model_dump(exclude={"path", "url", "hash"})
    content = json.dumps([FORMAT, settings, identity], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        images = np.load(folder / f"{part}.npy", mmap_mode="r")
        digest.update(f"{part} {images.shape}".encode())
        for start in range(0, len(images), CHUNK_IMAGES):
            digest.update(images[start : start + CHUNK_IMAGES].tobytes())
    return f"sha256:{digest.hexdigest()}"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
