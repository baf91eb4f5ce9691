"""Preparation of a source: one array on disk for each split, and a manifest."""

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import locked, printable, read_json, remove_files, write_json
from submanifold.common.processes import map_in_threads
from submanifold.common.progress import ProgressBar
from submanifold.data.arrays import (
    are_intact,
    hash_arrays,
    map_npy,
    save_context,
    write_chunks,
)
from submanifold.data.images import SUFFIXES
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.data.sources import SOURCES, SPLITS, Source, open_source
from submanifold.data.splits import Groups, Pool, plan

log = logging.getLogger(__name__)

Prepared = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""Copy-on-write memory maps of train, valid and test, and the manifest."""

CHUNK_IMAGES, CHUNK_BYTES = 64, 2**22
"""Most images, and bytes of images, that a thread decodes at a time."""
MAX_LISTED = 1000
LABELS, GROUPS = "labels.json", "groups.json"
BROKEN_PERCENT, BROKEN_FILES = 1, 10
MIN_IMAGES, FEW_IMAGES, CHECKED_IMAGES, MIN_CLASSES = 2, 100, 32, 2


def prepare(settings: ImageSettings, folder: Path, raw_folder: Path) -> Prepared:
    """Crop, resize and split the images of a source, in bounded memory.

    Finished work is returned. Arrays that no longer have the hash in the manifest (after a disk
    error) are prepared again, with a warning.

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
    key = {"settings": settings.content, "fingerprint": settings.fingerprint(raw_folder)}

    def write() -> dict[str, Any]:
        with closing(open_source(settings, raw_folder)) as source:
            return _write(source, settings, folder)

    *arrays, manifest = prepare_once(folder, f"the arrays of {settings.source}", key, write)
    if manifest["skipped_count"]:
        log.warning("skipped %d files, such as %s; see %s", manifest["skipped_count"],
                    _list(manifest["skipped"]), folder / "manifest.json")  # fmt: skip
    return arrays[0], arrays[1], arrays[2], manifest


def draw(settings: SyntheticSettings, folder: Path) -> Prepared:
    """Draw the points of each split from its own random stream, unless they exist and are intact.

    Args:
        settings: The manifold and the number of points.
        folder: Gets train.npy, valid.npy, test.npy, and finally manifest.json.

    Returns:
        Three float32 arrays (N, D), and the manifest.
    """

    def write() -> dict[str, Any]:
        remove_old(folder)
        manifold, counts = settings.manifold, settings.counts.model_dump()
        for index, (split, count) in enumerate(counts.items()):
            points = manifold.sample(count, np.random.default_rng([settings.seed, index]))
            write_chunks(folder / f"{split}.npy", [points], points.shape[1:], np.float32)
        return {"source": settings.source, "noise": manifold.noise, "counts": counts,
                "dim": manifold.ambient_dim, "seed": settings.seed,
                "split": "independent draws"}  # fmt: skip

    key = {"settings": settings.content}
    return prepare_once(folder, f"the points of {settings.source}", key, write)


def prepare_once(
    folder: Path, what: str, key: dict[str, Any], write: Callable[[], dict[str, Any]]
) -> Prepared:
    """Write arrays and a manifest, unless intact ones of this key exist."""
    with locked(folder, what):
        manifest: dict[str, Any] = read_json(folder / "manifest.json") or {}
        arrays = {split: map_npy(folder / f"{split}.npy") for split in SPLITS}
        counts = {split: len(array) for split, array in arrays.items() if array is not None}
        same = all(manifest.get(name) == value for name, value in key.items())
        has_groups = bool(read_groups(folder)) == bool(manifest.get("groups"))
        if not same or manifest["counts"] != counts or not has_groups or not are_intact(folder):
            if manifest or counts:
                log.warning(
                    "the arrays in %s are of other data, or damaged; preparing them again", folder
                )
            manifest = {**write(), "hash": hash_arrays(folder), **key}
            write_json(folder / "manifest.json", manifest)
    train, valid, test = (np.load(folder / f"{split}.npy", mmap_mode="c") for split in SPLITS)
    return train, valid, test, manifest


def remove_old(folder: Path) -> None:
    """Remove the files of other data."""
    old = (folder / name for name in ("manifest.json", LABELS, GROUPS))
    remove_files([*old, *folder.glob("*.npy")])


def check(settings: ImageSettings, folder: Path, raw_folder: Path, trained_on: bool = True) -> None:
    """Detect within a second what would make :func:`prepare` fail after minutes.

    Opens and splits the source and decodes the first 32 images, unless it is prepared or a
    download. If a model is trained on them, they must not be equal.

    Raises:
        UserError: If the images cannot be used.
    """
    is_download = settings.path is None and SOURCES[settings.source].path is not None
    if is_download or (folder / "manifest.json").is_file():
        return
    with closing(open_source(settings, raw_folder)) as source:
        pools = plan(source, settings.counts, settings.seed)
        count = sum(
            share.count for pool in pools for share in pool.shares if share.split == "train"
        )
        if trained_on and count < MIN_IMAGES:
            raise UserError(
                f"counts.train: expected {MIN_IMAGES} images or more, got {count}. Decrease the "
                "counts of valid and test, or set path to more images."
            )
        names = [name for pool in pools for name in pool.names[:CHECKED_IMAGES]][:CHECKED_IMAGES]
        results = [_read(source, name)[1] for name in names]
    images = [image for image in results if isinstance(image, np.ndarray)]
    if not images:
        raise UserError(
            f"path={settings.path}: expected images, got {len(names)} files that cannot be decoded,"
            f" such as {names[0]} ({results[0]}). Set another path."
        )
    if trained_on and len(images) > 1 and all((image == images[0]).all() for image in images):
        raise UserError(
            f"path={settings.path}: expected different images, got {len(images)} equal ones, which "
            "have no density. Set another path."
        )
    if settings.channels == 3 and all((image == image[:1]).all() for image in images):
        log.warning(
            "data.channels: the images are grey, so that their three channels are equal and each "
            "image is described three times. Use --params=data.channels=1."
        )


def few_images(train: np.ndarray) -> str | None:
    """A warning if fewer than 100 of the first 200 training images are different, or None."""
    first = train[: 2 * FEW_IMAGES]
    different = len({image.tobytes() for image in first})
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


def _write(source: Source, settings: ImageSettings, folder: Path) -> dict[str, Any]:
    """Write the arrays, labels, groups and contexts of a source, and return the manifest."""
    began = time.monotonic()
    names, broken = _write_arrays(source, settings, folder)
    if source.labels is not None:
        labels = {split: [source.labels[name] for name in names[split]] for split in SPLITS}
        write_json(folder / LABELS, labels)
        if settings.condition:
            _write_classes(folder, labels)
    groups = None
    if source.groups is not None:
        numbers = {group: n for n, group in enumerate(sorted(set(source.groups.values())))}
        groups = {split: [numbers[source.groups[name]] for name in names[split]]
                  for split in SPLITS}  # fmt: skip
        write_json(folder / GROUPS, groups)
    few = few_images(np.load(folder / "train.npy", mmap_mode="r"))
    others = [{"name": f"*{suffix}" if suffix.startswith(".") else suffix,
               "reason": f"{count} files that are not {', '.join(SUFFIXES)}"}
              for suffix, count in source.other_files.most_common()]  # fmt: skip
    skipped = [*others, *source.skipped, *broken][:MAX_LISTED]
    return {
        "source": settings.source,
        "path": settings.path,
        "counts": {split: len(names[split]) for split in SPLITS},
        "crop": settings.crop_rule,
        "size": settings.size,
        "channels": settings.channels,
        "split": source.split_rule,
        "split_note": "; ".join(filter(None, [source.note, few])) or None,
        "groups": groups and {split: len(set(groups[split])) for split in SPLITS},
        "seed": settings.seed,
        "skipped": [{k: printable(v) for k, v in item.items()} for item in skipped],
        "skipped_count": source.other_files.total() + len(source.skipped) + len(broken),
        "seconds": round(time.monotonic() - began, 2),
    }


def _write_classes(folder: Path, labels: Mapping[str, list[Any]]) -> None:
    """Write the labels of images as their contexts, which are classes from 0."""
    classes = {label for label in labels["train"] if isinstance(label, int)}
    if classes != set(range(len(classes))) or len(classes) < MIN_CLASSES:
        first = sorted(map(str, labels["train"][:MAX_LISTED]))
        raise UserError(
            f"condition=label: expected training images of all labels from 0 to a largest one, got "
            f"{', '.join(dict.fromkeys(first))}. Omit labels, other_labels or condition."
        )
    for split, values in labels.items():
        if unknown := set(values) - classes:
            raise UserError(
                f"condition=label: expected labels of training images in {split}, got "
                f"{sorted(unknown)}. Omit condition."
            )
        save_context(folder / f"{split}.npy", np.array(values, np.int64))


def _write_arrays(
    source: Source, settings: ImageSettings, folder: Path
) -> tuple[dict[str, list[str]], list[dict[str, str]]]:
    """Write the arrays; return the names of their images, by split, and the broken images."""
    pools = plan(source, settings.counts, settings.seed)
    remove_old(folder)
    shares = [share for pool in pools for share in pool.shares]
    total = sum(share.count for share in shares)
    names, read, broken = dict[str, list[str]](), list[str](), list[dict[str, str]]()
    chunk = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(settings.event_shape)))

    def readable(pool: Pool) -> Generator[np.ndarray]:
        for name, image in map_in_threads(lambda name: _read(source, name), pool.names, 0, chunk):
            if isinstance(image, np.ndarray):
                progress.update()
                read.append(name)
                yield image
                continue
            broken.append({"name": name, "reason": image})
            if len(broken) > (allowed := allowed_broken(total)):
                raise UserError(
                    f"path: expected at most {allowed} broken images among {total}, got "
                    f"{len(broken)} so far, such as {_list(broken)}. Repair or remove them, or set "
                    "another path."
                )

    with ProgressBar("preparing images", "images", total) as progress:
        for pool in pools:
            with closing(readable(pool)) as images:
                for share in pool.shares:
                    first, path = len(read), folder / f"{share.split}.npy"
                    write_chunks(path, islice(images, share.count), settings.event_shape, np.uint8)
                    names[share.split] = read[first:]
    log.info("%s", progress)
    for share in shares:
        written = len(names[share.split])
        if written < (share.count if share.exact else 1):
            raise UserError(
                f"counts.{share.split}: expected at most {written} readable images "
                f"({len(broken)} are broken), got {share.count}. Decrease it."
            )
    return names, broken


def _list(skipped: list[dict[str, str]]) -> str:
    return printable("; ".join(f"{item['name']} ({item['reason']})" for item in skipped[:3]))


def _read(source: Source, name: str) -> tuple[str, np.ndarray | str]:
    """The name, and the image or an error."""
    try:
        return name, source.image(name)
    except Exception as error:  # zips, disks and PIL's plugins raise many kinds of errors
        return name, f"{type(error).__name__}: {error}"


def allowed_broken(total: int) -> int:
    """Number of images that may be broken: 1% or 10, whichever is more, at most half."""
    return min(max(total * BROKEN_PERCENT // 100, BROKEN_FILES), total // 2)
