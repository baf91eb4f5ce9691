"""Preparation of a source: one array on disk for each split, and a manifest."""

import contextlib
import hashlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked, printable, read_json, remove_files, write_json
from submanifold.common.processes import cores, process_pool
from submanifold.common.progress import ProgressBar
from submanifold.data.arrays import (
    GrowingArray,
    are_intact,
    context_path,
    hash_arrays,
    map_npy,
    save_context,
    write_npy,
)
from submanifold.data.images import SUFFIXES
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.data.sources import SOURCES, SPLITS, Source, fingerprint, open_source
from submanifold.data.splits import Groups, Pool, plan

log = logging.getLogger(__name__)

Prepared = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""Copy-on-write memory maps of train, valid and test, and the manifest."""

FORMAT_VERSION = 1
"""Increase it if the same source and settings would give other arrays."""
CHUNK_IMAGES, CHUNK_BYTES = 8192, 2**25
"""Most images, and bytes of images, between two saved states."""
TASK_IMAGES, TASK_BYTES, QUEUED = 64, 2**22, 3
"""Size of a task of a process, and the number of tasks queued for each."""
PARALLEL_IMAGES = 256
"""For fewer images, starting processes takes longer than decoding."""
MAX_LISTED = 1000
LABELS, GROUPS = "labels.json", "groups.json"
BROKEN_PERCENT, BROKEN_FILES = 1, 10
MIN_IMAGES, FEW_IMAGES, CHECKED_IMAGES, MIN_CLASSES = 2, 100, 32, 2


def prepare(settings: ImageSettings, folder: Path, raw_folder: Path) -> Prepared:
    """Crop, resize and split the images of a source, in bounded memory.

    Finished work is returned; interrupted work is resumed, with the same result. Arrays that no
    longer have the hash in the manifest (after a disk error) are prepared again, with a warning.

    Args:
        settings: The source and the shape of the images.
        folder: Gets train.npy, valid.npy, test.npy, labels.json and groups.json if there are any,
            and finally manifest.json; with a condition also files of the contexts.
        raw_folder: Folder of downloads.

    Returns:
        Three uint8 arrays (N, channels, size, size), and the manifest, with a hash of the arrays,
        the first 1,000 `skipped` images (`{"name", "reason"}`), and the numbers of `groups` by
        split (None if images are independent).

    Raises:
        UserError: If the source cannot be read or split, or too many images are broken
            (:func:`allowed_broken`).
    """
    identity = fingerprint(settings, raw_folder)
    with locked(folder, f"the arrays of {settings.source}"):
        manifest = _finished(folder, settings, identity)
        if manifest is None:
            with closing(open_source(settings, raw_folder)) as source:
                manifest = _run(source, settings, folder, identity)
        if settings.condition:
            _write_classes(folder)
    train, valid, test = (np.load(folder / f"{split}.npy", mmap_mode="c") for split in SPLITS)
    if manifest["skipped_count"]:
        reasons = [f"{each['name']} ({each['reason']})" for each in manifest["skipped"][:3]]
        log.warning(
            "skipped %d files, such as %s; see %s", manifest["skipped_count"],
            "; ".join(reasons), folder / "manifest.json",
        )  # fmt: skip
    return train, valid, test, manifest


def _write_classes(folder: Path) -> None:
    """Write the labels of images as their contexts, which are classes from 0."""
    labels = read_labels(folder)
    classes = {each for each in labels["train"] if isinstance(each, int)}
    if classes != set(range(len(classes))) or len(classes) < MIN_CLASSES:
        found = sorted(map(str, labels["train"][:MAX_LISTED]))
        raise UserError(
            f"condition=label: expected training images of all labels from 0 to a largest one, got "
            f"{', '.join(dict.fromkeys(found))}. Omit labels, other_labels or condition."
        )
    for split, own in labels.items():
        if not set(own) <= classes:
            raise UserError(
                f"condition=label: expected labels of training images in {split}, got "
                f"{sorted(set(own) - classes)}. Omit condition."
            )
        path = folder / f"{split}.npy"
        if not context_path(path).exists():
            save_context(path, np.array(own, np.int64))


def draw(settings: SyntheticSettings, folder: Path) -> Prepared:
    """Draw the points of each split from its own random stream, unless they exist and are intact.

    Args:
        settings: The manifold and the number of points.
        folder: Gets train.npy, valid.npy, test.npy, and finally manifest.json.

    Returns:
        Three float32 arrays (N, D), and the manifest.
    """
    manifold = settings.manifold
    manifest: dict[str, Any] = {
        "source": settings.source,
        "noise": manifold.noise,
        "counts": settings.counts.model_dump(),
        "dim": manifold.ambient_dim,
        "seed": settings.seed,
        "split": "independent draws",
    }
    path = folder / "manifest.json"
    with locked(folder, f"the points of {settings.source}"):
        found = read_json(path) or {}
        if not are_intact(folder):
            log.warning("the points in %s do not have their hash; drawing them again", folder)
            found = {}
        if {name: value for name, value in found.items() if name != "hash"} != manifest:
            remove_files([path, *folder.glob("*.npy")])
        arrays = []
        for index, split in enumerate(SPLITS):
            count = getattr(settings.counts, split)
            points = manifold.sample(count, np.random.default_rng([settings.seed, index]))
            arrays.append(write_npy(folder / f"{split}.npy", [points], points.shape))
        manifest["hash"] = hash_arrays(folder)
        if manifest != found:
            write_json(path, manifest)
    return arrays[0], arrays[1], arrays[2], manifest


def check(settings: ImageSettings, folder: Path, raw_folder: Path, trained_on: bool = True) -> None:
    """Detect within a second what would make :func:`prepare` fail after minutes.

    Opens and splits the source and decodes the first 32 images, unless it is prepared or must be
    downloaded first. If a model is trained on them, they must not be equal.

    Raises:
        UserError: If the images cannot be used.
    """
    if (folder / "manifest.json").is_file():
        return
    if SOURCES[settings.source].must_download(settings, raw_folder):
        return
    with closing(open_source(settings, raw_folder)) as source:
        pools = plan(source, settings.counts, settings.seed)
        count = sum(each.count for pool in pools for each in pool.shares if each.split == "train")
        if trained_on and count < MIN_IMAGES:
            raise UserError(
                f"counts.train: expected {MIN_IMAGES} images or more, got {count}. Decrease the "
                "counts of valid and test, or set path to more images."
            )
        names = [name for pool in pools for name in pool.names[:CHECKED_IMAGES]][:CHECKED_IMAGES]
        results = list(_decode(source, names, None))
    images = [each for each in results if isinstance(each, np.ndarray)]
    if not images:
        raise UserError(
            f"path={settings.path}: expected images, got {len(names)} files that cannot be decoded,"
            f" such as {names[0]} ({results[0]}). Set another path."
        )
    if trained_on and len(images) > 1 and all((each == images[0]).all() for each in images):
        raise UserError(
            f"path={settings.path}: expected different images, got {len(images)} equal ones, which "
            "have no density. Set another path."
        )
    if settings.channels == 3 and all((each == each[:1]).all() for each in images):
        log.warning(
            "data.channels: the images are grey, so that their three channels are equal and each "
            "image is described three times. Use --params=data.channels=1."
        )


def few_images(train: np.ndarray) -> str | None:
    """A warning if fewer than 100 of the first 200 training images are different, or None."""
    first = train[: 2 * FEW_IMAGES]
    different = len({each.tobytes() for each in first})
    if different >= FEW_IMAGES:
        return None
    return (
        f"expected {FEW_IMAGES} or more different training images, got {different} among the first "
        f"{len(first)}: a model memorizes so few, and its metrics are not meaningful"
    )


def read_labels(folder: Path) -> dict[str, list[Any]]:
    """Labels of prepared images, by split, in the order of the arrays; empty without labels."""
    return read_json(folder / LABELS) or {}


def read_groups(folder: Path) -> Groups:
    """Groups of prepared images, by split, in the order of the arrays; empty without groups."""
    return read_json(folder / GROUPS) or {}


@dataclass
class State:
    """Progress: names read of each pool, images written of each split, broken images."""

    key: str
    read: list[int]
    written: dict[str, int]
    broken: list[dict[str, str]]

    def save(self, path: Path) -> None:
        """Write it to a file atomically."""
        write_json(path, vars(self))

    def by_split(self, values: Mapping[str, Any], pools: list[Pool]) -> dict[str, list[Any]]:
        """Values of the written images, by split, in the order of the arrays."""
        broken, found = {each["name"] for each in self.broken}, {}
        for pool, read in zip(pools, self.read, strict=True):
            rest = [values[name] for name in pool.names[:read] if name not in broken]
            for share in pool.shares:
                count = self.written[share.split]
                found[share.split], rest = rest[:count], rest[count:]
        return found


def _run(source: Source, settings: ImageSettings, folder: Path, identity: str) -> dict[str, Any]:
    began = time.monotonic()
    pools = plan(source, settings.counts, settings.seed)
    shape, key = settings.event_shape, _key(settings, identity)
    arrays = {split: GrowingArray(folder / f"{split}.npy", shape) for split in SPLITS}
    state = _resume(folder, key, arrays, len(pools))
    _decode_all(source, pools, arrays, state, folder / "state.json")
    for split, array in arrays.items():
        array.finish(state.written[split])
    if source.labels is not None:
        write_json(folder / LABELS, state.by_split(source.labels, pools))
    group_counts = None
    if source.groups is not None:
        numbers = {group: n for n, group in enumerate(sorted(set(source.groups.values())))}
        numbered = {name: numbers[group] for name, group in source.groups.items()}
        groups = state.by_split(numbered, pools)
        write_json(folder / GROUPS, groups)
        group_counts = {split: len(set(found)) for split, found in groups.items()}
    few = few_images(np.load(folder / "train.npy", mmap_mode="r"))
    others = [{"name": f"*{suffix}" if suffix.startswith(".") else suffix,
               "reason": f"{count} files that are not {', '.join(SUFFIXES)}"}
              for suffix, count in source.other_files.most_common()]  # fmt: skip
    skipped = others + source.skipped + state.broken
    manifest: dict[str, Any] = {
        "key": key,
        "source": settings.source,
        "path": settings.path,
        "counts": state.written,
        "crop": source.crop,
        "size": settings.size,
        "channels": settings.channels,
        "split": source.split_rule,
        "split_note": "; ".join(note for note in (source.note, few) if note) or None,
        "groups": group_counts,
        "seed": settings.seed,
        "hash": hash_arrays(folder),
        "fingerprint": identity,
        "skipped": [{k: printable(v) for k, v in each.items()} for each in skipped[:MAX_LISTED]],
        "skipped_count": source.other_files.total() + len(source.skipped) + len(state.broken),
        "seconds": round(time.monotonic() - began, 2),
    }
    write_json(folder / "manifest.json", manifest)
    (folder / "state.json").unlink(missing_ok=True)
    return manifest


def _decode_all(
    source: Source,
    pools: list[Pool],
    arrays: Mapping[str, GrowingArray],
    state: State,
    state_file: Path,
) -> None:
    """Decode images into the arrays, from the state on."""
    shares = [share for pool in pools for share in pool.shares]
    total = sum(share.count for share in shares)
    limit = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(arrays["train"].shape)))
    pool_of_processes = process_pool("decode images", cores())
    with (
        pool_of_processes if total >= PARALLEL_IMAGES else contextlib.nullcontext() as executor,
        ProgressBar("preparing images", "images", total, sum(state.written.values())) as progress,
    ):
        for index, pool in enumerate(pools):
            while wanted := sum(share.count - state.written[share.split] for share in pool.shares):
                start = state.read[index]
                names = pool.names[start : start + min(wanted, limit)]
                if not names:
                    break
                results = list(_decode(source, names, executor))
                images = [each for each in results if isinstance(each, np.ndarray)]
                state.broken += [
                    {"name": name, "reason": each}
                    for name, each in zip(names, results, strict=False)
                    if isinstance(each, str)
                ]
                if len(state.broken) > (allowed := allowed_broken(total)):
                    first = [f"{each['name']} ({each['reason']})" for each in state.broken[:3]]
                    raise UserError(
                        f"path: expected at most {allowed} broken images among {total}, got "
                        f"{len(state.broken)} so far, such as {printable('; '.join(first))}. "
                        "Repair or remove them, or set another path."
                    )
                progress.update(len(images))
                for share in pool.shares:
                    start = state.written[share.split]
                    batch, images = images[: share.count - start], images[share.count - start :]
                    if batch:
                        arrays[share.split].write(start, np.stack(batch))
                        state.written[share.split] += len(batch)
                state.read[index] += len(results)
                state.save(state_file)
    log.info("%s", progress)
    for share in shares:
        written = state.written[share.split]
        if written < (share.count if share.exact else 1):
            raise UserError(
                f"counts.{share.split}: expected at most {written} readable images "
                f"({len(state.broken)} are broken), got {share.count}. Decrease it."
            )


def _decode(
    source: Source, names: Iterable[str], executor: Executor | None
) -> Iterator[np.ndarray | str]:
    """Decode images in order, in queued tasks of a bounded size, to an image or an error each."""
    queue: deque[Future[list[np.ndarray | str]]] = deque()
    for task in _tasks(source, names):
        if executor is None:
            yield from _decode_task(source.decode, task)
            continue
        queue.append(executor.submit(_decode_task, source.decode, task))
        if len(queue) > QUEUED * cores():
            yield from queue.popleft().result()
    while queue:
        yield from queue.popleft().result()


def _tasks(source: Source, names: Iterable[str]) -> Iterator[list[Any]]:
    task: list[Any] = []
    size = 0
    for name in names:
        try:
            task.append(source.read(name))
            size += len(task[-1])
        except Exception as error:  # zips and disks raise many kinds of errors
            task.append(error)
        if len(task) == TASK_IMAGES or size >= TASK_BYTES:
            yield task
            task, size = [], 0
    yield task


def _decode_task(decode: Callable[[Any], np.ndarray], task: list[Any]) -> list[np.ndarray | str]:
    def decode_or_explain(content: Any) -> np.ndarray | str:
        try:
            if isinstance(content, Exception):
                raise content
            return decode(content)
        except Exception as error:  # PIL's plugins raise many kinds of errors
            return f"{type(error).__name__}: {error}"

    return [decode_or_explain(content) for content in task]


def allowed_broken(total: int) -> int:
    """Number of images that may be broken: 1% or 10, whichever is more, at most half."""
    return min(max(total * BROKEN_PERCENT // 100, BROKEN_FILES), total // 2)


def _resume(folder: Path, key: str, arrays: Mapping[str, GrowingArray], pools: int) -> State:
    with contextlib.suppress(TypeError, KeyError):
        state = State(**(read_json(folder / "state.json") or {}))
        if state.key == key and all(arrays[s].has(state.written[s]) for s in SPLITS):
            log.info("resuming after %d images", sum(state.read))
            return state
    old = [folder / name for name in ("manifest.json", "state.json", LABELS, GROUPS)]
    remove_files([*old, *folder.glob("*.npy*")])
    return State(key, [0] * pools, dict.fromkeys(SPLITS, 0), [])


def _finished(folder: Path, settings: ImageSettings, identity: str) -> dict[str, Any] | None:
    """The manifest, if it and intact arrays are of these settings and data."""
    manifest: dict[str, Any] = read_json(folder / "manifest.json") or {}
    arrays = {split: map_npy(folder / f"{split}.npy") for split in SPLITS}
    counts = {split: len(array) for split, array in arrays.items() if array is not None}
    if manifest.get("key") == _key(settings, identity) and manifest["counts"] == counts:
        if are_intact(folder) and bool(read_groups(folder)) == (manifest["groups"] is not None):
            return manifest
        log.warning("the arrays in %s do not have their hash; preparing them again", folder)
    elif manifest or counts:
        log.info("the arrays in %s are of other data, or truncated; preparing them again", folder)
    return None


def _key(settings: ImageSettings, identity: str) -> str:
    content = json.dumps([FORMAT_VERSION, settings.content, identity], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
