"""From a source to one uint8 array on disk for each split, and a manifest of what happened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked, printable, read_json, remove_files, write_json
from submanifold.common.progress import ProgressBar
from submanifold.data.arrays import GrowingArray, map_whole
from submanifold.data.decoding import Result, attempt, decoding
from submanifold.data.groups import Groups
from submanifold.data.hashes import hash_arrays, is_as_made
from submanifold.data.images import fingerprint, must_download, open_source
from submanifold.data.settings import PARTS, Counts, ImageSettings
from submanifold.data.source import Source
from submanifold.data.stores import SUFFIXES

log = logging.getLogger(__name__)

# Part of every key: a change in how pixels are made must not find arrays made the old way.
FORMAT = 1
# What a kill loses at most is a chunk of images, or some seconds.
CHUNK_IMAGES, CHUNK_BYTES, CHUNK_SECONDS = 8192, 2**25, 5.0
LISTED = 1000
LABELS, GROUPS = "labels.json", "groups.json"
ALLOWED_PERCENT, ALLOWED_FILES = 1, 10
FEWEST, FEW = 2, 100
"""Fewer training images are refused; fewer different ones give a warning."""
LOOKED = 32


def prepare(
    settings: ImageSettings, folder: Path, raw_folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Crop, resize and split a source into memory-mapped arrays.

    Images stream from the source to disk in chunks, so memory does not grow with their number. A
    call that finds finished work returns it; one that finds half of it (after a kill) goes on
    from the last chunk and ends with the same bytes. One that finds another process at it waits.
    One that finds arrays of another hash than the manifest's, because a disk has turned a bit,
    makes them anew, with a warning.

    The folder gets train.npy, valid.npy, test.npy, labels.json and groups.json where there are any
    and, when they are whole, manifest.json; the raw folder holds downloads.

    Returns:
        train, valid, test: uint8 (N, channels, size, size), copy-on-write maps of the files.
        manifest: What was made of what; its hash is of the arrays, and of `skipped`
            (`{"name", "reason"}`) it has the first 1,000. `groups` are their counts by split, or
            None where images are independent.

    Raises:
        UserError: If the settings or the source cannot work, or more of it is broken than
            :func:`allowed_broken`.
    """
    identity = fingerprint(settings, raw_folder)
    with locked(folder, f"the arrays of {settings.source}"):
        manifest = _finished(folder, settings, identity)
        if manifest is None:
            with closing(open_source(settings, raw_folder)) as source:
                manifest = _run(source, settings, folder, identity)
    train, valid, test = (np.load(folder / f"{part}.npy", mmap_mode="c") for part in PARTS)
    if manifest["skipped_count"]:
        reasons = [f"{each['name']} ({each['reason']})" for each in manifest["skipped"][:3]]
        log.warning(
            "skipped %d files, such as %s; %s names them", manifest["skipped_count"],
            "; ".join(reasons), folder / "manifest.json",
        )  # fmt: skip
    return train, valid, test, manifest


def check(settings: ImageSettings, folder: Path, raw_folder: Path, trained_on: bool = True) -> None:
    """Find in a second what would make :func:`prepare` fail after minutes.

    Opens the source, shares its images out and decodes the first 32 of them. What must be
    downloaded first is not looked at, nor what is prepared already.

    Args:
        settings: Of the images.
        folder: The folder that they are prepared in.
        raw_folder: Holds downloads.
        trained_on: Whether a model is trained on them.

    Raises:
        UserError: The source cannot be opened or split, or none of the first images can be read;
            where a model is trained on them, there are fewer than two training images, or the
            first are all equal.
    """
    if (folder / "manifest.json").is_file() or must_download(settings, raw_folder):
        return
    with closing(open_source(settings, raw_folder)) as source:
        pools = plan(source, settings.counts, settings.seed)
        count = sum(each.count for pool in pools for each in pool.shares if each.part == "train")
        if trained_on and count < FEWEST:
            raise UserError(
                f"counts.train: expected {FEWEST} images or more, got {count}. Set smaller counts "
                "for valid and test, or give a path to more images"
            )
        names = [name for pool in pools for name in pool.names[:LOOKED]][:LOOKED]
        results = [attempt(source.image, name) for name in names]
    images = [each for each in results if isinstance(each, np.ndarray)]
    if not images:
        raise UserError(
            f"path={settings.path}: expected images, but none of the first {len(names)} can be "
            f"read, such as {names[0]} ({results[0]}). Set another path"
        )
    if trained_on and len(images) > 1 and all((each == images[0]).all() for each in images):
        raise UserError(
            f"path={settings.path}: expected different images, but the first {len(images)} are "
            "equal pixel by pixel, which have no density. Set another path"
        )


def few_images(train: np.ndarray) -> str | None:
    """A warning if fewer than 100 of the first 200 training images are different, or None."""
    first = train[: 2 * FEW]
    different = len({each.tobytes() for each in first})
    if different >= FEW:
        return None
    return (
        f"expected {FEW} or more different training images, got {different} among the first "
        f"{len(first)}: a model memorizes so few, and its metrics say little"
    )


def read_labels(folder: Path) -> dict[str, list[Any]]:
    """Labels of prepared images, by split in the order of the arrays; empty if there are none."""
    return read_json(folder / LABELS) or {}


def read_groups(folder: Path) -> Groups:
    """Groups of prepared images, as :func:`read_labels`."""
    return read_json(folder / GROUPS) or {}


@dataclass
class Share:
    """A split's claim on a pool: exactly `count` images, or at most that many."""

    part: str
    count: int
    exact: bool = True


@dataclass
class Pool:
    """Names in the order they are read, and the splits they fill one after the other."""

    names: list[str]
    shares: list[Share]


def plan(source: Source, counts: Counts, seed: int) -> list[Pool]:
    """Shuffle by the seed and share out.

    A source with official splits gives one pool for each, as does one with groups, each of which
    goes to one split; otherwise one pool feeds all three.

    Raises:
        UserError: If there are fewer images than asked for, or too few for three splits.
    """
    parts = source.parts
    if parts is None:
        shares = share_out(len(source.names), counts)
        if source.groups is None:
            return [Pool(_shuffled(source.names, seed), shares)]
        parts = split_groups(source.groups, shares, seed)
    pools = []
    for index, part in enumerate(PARTS):
        members = [name for name in source.names if parts[name] == part]
        have, wanted = len(members), getattr(counts, part)
        if not members:
            raise UserError(
                f"split={source.rule} leaves no {part} images; set split=random, or give the whole "
                "data set as path"
            )
        if wanted is not None and wanted > have:
            raise UserError(
                f"counts.{part}={wanted}, but the {source.rule} split has {have} {part} images; "
                f"set counts.{part} to {have} or less"
            )
        share = Share(part, wanted or have, exact=wanted is not None)
        pools.append(Pool(_shuffled(members, [seed, index]), [share]))
    return pools


def _shuffled(names: list[str], seed: int | list[int]) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def split_groups(groups: Mapping[str, str], shares: list[Share], seed: int) -> dict[str, str]:
    """Give each group to one split: shuffled by the seed, until each has its share of images.

    Args:
        groups: The group of each name.
        shares: The last of them takes the rest.
        seed: Of the order.

    Returns:
        The split of each name.

    Raises:
        UserError: If there are fewer groups than splits.
    """
    sizes = Counter(groups.values())
    if len(sizes) < len(shares):
        raise UserError(
            f"groups: expected {len(shares)} groups or more, one for each split, got {len(sizes)}. "
            "Give other groups, or leave groups out."
        )
    waiting, parts = _shuffled(sorted(sizes), seed), {}
    for left, share in zip(range(len(shares))[::-1], shares, strict=True):
        count = 0
        while len(waiting) > left and (count < share.count or not left):
            group = waiting.pop()
            parts[group], count = share.part, count + sizes[group]
    return {name: parts[group] for name, group in groups.items()}


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
        asked = ", ".join(f"counts.{part}={count}" for part, count in given.items())
        raise UserError(
            f"counts cannot be met: {total} images are too few for three splits"
            f"{' with ' if asked else ''}{asked}; give smaller counts, or a path to more images"
        )
    rest = next((part for part in ("train", "test") if part in open_parts), None)
    tenth = max(1, min(total // 10, spare // max(1, len(open_parts))))
    shares = [Share(part, count) for part, count in given.items()]
    shares += [Share(part, tenth) for part in open_parts if part != rest]
    if rest:
        shares.append(Share(rest, total - sum(share.count for share in shares), exact=False))
    return shares


@dataclass
class State:
    """How far a run came: names read of each pool, and images written of each split."""

    key: str
    read: list[int]
    written: dict[str, int]
    broken: list[dict[str, str]]
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Replace the file in one step."""
        write_json(path, vars(self))


def _run(source: Source, settings: ImageSettings, folder: Path, identity: str) -> dict[str, Any]:
    pools = plan(source, settings.counts, settings.seed)
    shares = [share for pool in pools for share in pool.shares]
    total = sum(share.count for share in shares)
    arrays = {part: GrowingArray(folder / f"{part}.npy", settings.event_shape) for part in PARTS}
    state = _resume(folder, _key(settings, identity), arrays, len(pools))
    began = time.monotonic() - state.seconds
    most = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(settings.event_shape)))
    with (
        decoding(source, total) as decoded,
        ProgressBar("preparing images", "images", total, sum(state.written.values())) as meter,
    ):
        for index, pool in enumerate(pools):
            while names := _next_names(pool, state.read[index], state.written):
                for results in _chunks(decoded(names), most):
                    images = [result for result in results if isinstance(result, np.ndarray)]
                    at = state.read[index]
                    _count_broken(state, pool.names[at : at + len(results)], results, total)
                    meter.update(len(images))
                    for share in pool.shares:
                        start = state.written[share.part]
                        batch, images = images[: share.count - start], images[share.count - start :]
                        if batch:
                            arrays[share.part].write(start, np.stack(batch))
                            state.written[share.part] += len(batch)
                    state.read[index] += len(results)
                    state.seconds = time.monotonic() - began
                    state.save(folder / "state.json")
    log.info("%s", meter)
    for share in shares:
        have = state.written[share.part]
        if have < (share.count if share.exact else 1):
            raise UserError(
                f"counts.{share.part} cannot be met: only {have} readable images are left of "
                f"{share.count} wanted ({len(state.broken)} were broken); set it to {have} or less"
            )
    for part, array in arrays.items():
        array.finish(state.written[part])
    if source.labels is not None:
        write_json(folder / LABELS, _by_part(source.labels, pools, state))
    counts = None
    if source.groups is not None:
        numbers = {group: n for n, group in enumerate(sorted(set(source.groups.values())))}
        numbered = {name: numbers[group] for name, group in source.groups.items()}
        groups = _by_part(numbered, pools, state)
        write_json(folder / GROUPS, groups)
        counts = {part: len(set(found)) for part, found in groups.items()}
    few = few_images(np.load(folder / "train.npy", mmap_mode="r"))
    others = [{"name": f"*{suffix}" if suffix.startswith(".") else suffix,
               "reason": f"{count} files that are not {', '.join(SUFFIXES)}"}
              for suffix, count in source.others.most_common()]  # fmt: skip
    manifest: dict[str, Any] = {
        "key": state.key,
        "source": settings.source,
        "path": settings.path,
        "counts": state.written,
        "crop": source.crop,
        "size": settings.size,
        "channels": settings.channels,
        "split": source.rule,
        "split_note": "; ".join(note for note in (source.note, few) if note) or None,
        "groups": counts,
        "seed": settings.seed,
        "hash": hash_arrays(folder),
        "fingerprint": identity,
        "skipped": (others + source.skipped + state.broken)[:LISTED],
        "skipped_count": source.others.total() + len(source.skipped) + len(state.broken),
        "seconds": round(time.monotonic() - began, 2),
    }
    manifest["skipped"] = [
        {key: printable(text) for key, text in each.items()} for each in manifest["skipped"]
    ]
    write_json(folder / "manifest.json", manifest)
    (folder / "state.json").unlink(missing_ok=True)
    return manifest


def _by_part(values: Mapping[str, Any], pools: list[Pool], state: State) -> dict[str, list[Any]]:
    """A value of each image, by split in the order of the arrays."""
    broken, found = {each["name"] for each in state.broken}, {}
    for pool, read in zip(pools, state.read, strict=True):
        rest = [values[name] for name in pool.names[:read] if name not in broken]
        for share in pool.shares:
            count = state.written[share.part]
            found[share.part], rest = rest[:count], rest[count:]
    return found


def _next_names(pool: Pool, at: int, written: Mapping[str, int]) -> list[str]:
    """Never more than the splits still want."""
    wanted = sum(share.count - written[share.part] for share in pool.shares)
    return pool.names[at : at + wanted]


def _chunks(results: Iterable[Result], most: int) -> Iterator[list[Result]]:
    """Results in lists that are full, or took some seconds."""
    chunk, began = [], time.monotonic()
    for result in results:
        chunk.append(result)
        if len(chunk) == most or time.monotonic() - began > CHUNK_SECONDS:
            yield chunk
            chunk, began = [], time.monotonic()
    if chunk:
        yield chunk


def _count_broken(state: State, names: list[str], results: list[Result], total: int) -> None:
    both = zip(names, results, strict=True)
    broken = [{"name": name, "reason": result} for name, result in both if isinstance(result, str)]
    state.broken += broken
    if len(state.broken) > (allowed := allowed_broken(total)):
        first = "; ".join(f"{item['name']} ({item['reason']})" for item in state.broken[:3])
        first = printable(first)
        raise UserError(
            f"path holds broken files: {len(state.broken)} of {total} images cannot be read so "
            f"far, such as {first}; up to {allowed} would be skipped ({ALLOWED_PERCENT}%, or "
            f"{ALLOWED_FILES} where that is more, but not over half). Mend or remove them, or set "
            "another path"
        )


def allowed_broken(total: int) -> int:
    """How many files that cannot be read are skipped: 1% or 10, whichever is more, at most half."""
    return min(max(total * ALLOWED_PERCENT // 100, ALLOWED_FILES), total // 2)


def _resume(folder: Path, key: str, arrays: Mapping[str, GrowingArray], pools: int) -> State:
    with contextlib.suppress(TypeError, KeyError):
        state = State(**(read_json(folder / "state.json") or {}))
        if state.key == key and all(arrays[p].holds(state.written[p]) for p in PARTS):
            log.info("going on after %d images of an interrupted run", sum(state.read))
            return state
    old = [folder / name for name in ("manifest.json", "state.json", LABELS, GROUPS)]
    remove_files([*old, *folder.glob("*.npy*")])
    return State(key, [0] * pools, dict.fromkeys(PARTS, 0), [])


def _finished(folder: Path, settings: ImageSettings, identity: str) -> dict[str, Any] | None:
    """The manifest, if there is one of these settings and data beside arrays that are whole."""
    manifest: dict[str, Any] = read_json(folder / "manifest.json") or {}
    arrays = {part: map_whole(folder / f"{part}.npy") for part in PARTS}
    whole = {part: len(array) for part, array in arrays.items() if array is not None}
    if manifest.get("key") == _key(settings, identity) and manifest["counts"] == whole:
        grouped = manifest.get("groups") is not None
        if is_as_made(folder) and bool(read_groups(folder)) == grouped:
            return manifest
        log.warning("the arrays in %s are not as they were made (they have another hash)", folder)
    if manifest or whole:
        log.info("%s holds arrays of other settings or data, or damaged: made anew", folder)
    return None


def _key(settings: ImageSettings, identity: str) -> str:
    content = json.dumps([FORMAT, settings.content, identity], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
