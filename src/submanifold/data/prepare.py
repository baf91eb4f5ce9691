"""Preparation of a source: one array on disk for each split, and a manifest."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError, printable, unexpected
from submanifold.common.processes import map_in_threads
from submanifold.common.progress import ProgressBar
from submanifold.data.arrays import (
    Prepared,
    Sidecars,
    Written,
    prepare_once,
    save_context,
    write_chunks,
)
from submanifold.data.fields import Counts
from submanifold.data.images import SUFFIXES, decode
from submanifold.data.settings import ImageSettings, SyntheticSettings
from submanifold.data.sources import SOURCES, Source
from submanifold.data.splits import SPLITS, assign_groups, count_of, shuffled, split_sizes

log = logging.getLogger(__name__)

Pool = tuple[list[str], dict[str, int]]
"""Names of images in the order in which they are read, and how many of them each split gets."""

MAX_LISTED, MAX_NAMED = 1000, 5  # skipped files in the manifest, and in the log
BROKEN_FILES = 10
"""Number of images that may always be broken, but at most half; of many images 1% may be."""
MIN_IMAGES, FEW_IMAGES, MIN_CLASSES = 2, 100, 2


def prepare(settings: ImageSettings, folder: Path, raw_folder: Path) -> Prepared:
    """Crop, resize and split the images of a source, in bounded memory.

    Finished work is returned. The folder gets train.npy, valid.npy, test.npy, labels.json and
    groups.json if there are any, and finally manifest.json; with a condition also files of the
    contexts.

    Returns three uint8 arrays (N, channels, size, size), and the manifest, with a hash of the
    arrays, the first 1,000 `skipped` images (`{"name", "reason"}`), and the numbers of `groups` by
    split (None if images are independent). A source that cannot be read or split, or of which more
    than 10 images and more than 1%, or more than half, are broken, raises a UserError.
    """
    key = {"settings": settings.content, "fingerprint": settings.fingerprint(raw_folder)}

    def write() -> Written:
        with closing(settings.open(raw_folder)) as source:
            return _write(source, settings, folder)

    prepared = prepare_once(folder, f"the arrays of {settings.source}", key, write)
    if count := prepared[3]["skipped_count"]:
        entries = prepared[3]["skipped"][:MAX_NAMED]
        names = (
            f"{entry['reason'].split()[0]} {entry['name']}"
            if entry["name"][:2] == "*."
            else entry["name"]
            for entry in entries
        )
        log.warning(
            "skipped %d files (%s%s); see %s",
            count,
            ", ".join(names),
            ", ..." if len(prepared[3]["skipped"]) > MAX_NAMED else "",
            folder / "manifest.json",
        )
    return prepared


def draw(settings: SyntheticSettings, folder: Path) -> Prepared:
    """Draw the points of each split from its own random stream, as float32 arrays (N, D)."""

    def write() -> Written:
        manifold = settings.manifold
        for index, (split, count) in enumerate(settings.counts):
            points = manifold.sample(count, np.random.default_rng([settings.seed, index]))
            write_chunks(folder / f"{split}.npy", [points], points.shape[1:], np.float32)
        return {"noise": manifold.noise, "dim": manifold.ambient_dim}, {}

    key = {"settings": settings.content, "source": settings.source, "seed": settings.seed}
    return prepare_once(folder, f"the points of {settings.source}", key, write)


def check(settings: ImageSettings, folder: Path, raw_folder: Path) -> None:
    """Open and split the source to detect mistakes, unless it is prepared or a download."""
    is_download = settings.path is None and SOURCES[settings.source].path is not None
    if not is_download and not (folder / "manifest.json").is_file():
        with closing(settings.open(raw_folder)) as source:
            plan(source, settings.counts, settings.seed)


def plan(source: Source, counts: Counts, seed: int) -> list[Pool]:
    """Shuffle a source's images and assign them to splits: one pool for all, or one for each."""
    splits = source.splits
    if splits is None:
        sizes = split_sizes(len(source.names), counts)
        if source.groups is None:
            return [(shuffled(source.names, seed), sizes)]
        assigned = assign_groups(Counter(source.groups.values()), sizes, seed)
        splits = {name: assigned[group] for name, group in source.groups.items()}
    pools = []
    for index, split in enumerate(SPLITS):
        names = [name for name in source.names if splits[name] == split]
        if not names:
            expected = f"{split} images in the {source.split_rule} split"
            fix = "Set split=random, or set path to the complete data set"
            raise unexpected("split", expected, "none", fix)
        size = count_of(split, counts, len(names))
        pools.append((shuffled(names, [seed, index]), {split: size}))
    return pools


def _notes(train: np.ndarray, duplicates: Mapping[str, int]) -> Iterator[str]:
    first = train[: 2 * FEW_IMAGES]
    different = len({image.tobytes() for image in first})
    got = f"{FEW_IMAGES} or more different training images, got {different} among {len(first)}"
    if different < MIN_IMAGES:
        fix = "Set path to other images, or decrease the counts of valid and test"
        raise UserError(f"counts.train: expected {got}. {fix}.")
    if different < FEW_IMAGES:
        yield f"expected {got}: a model memorizes so few, and its metrics are not meaningful"
    for split, count in duplicates.items():
        if count:
            yield f"{count:,} {split} images equal a training image"
    if first.shape[1] > 1 and (first == first[:, :1]).all():
        yield (
            "the images are grey, so that their three channels are equal and each image is "
            "described three times; set data.channels=1"
        )


def _count_duplicates(folder: Path) -> dict[str, int]:
    """Count the validation and test images that equal a training image."""

    def digests(split: str) -> np.ndarray:
        images = np.load(folder / f"{split}.npy", mmap_mode="r")
        hashes = (blake2b(image.tobytes(), digest_size=8).digest() for image in images)
        return np.fromiter((int.from_bytes(digest) for digest in hashes), np.uint64, len(images))

    train = digests("train")
    return {split: int(np.isin(digests(split), train).sum()) for split in ("valid", "test")}


def _write(source: Source, settings: ImageSettings, folder: Path) -> Written:
    names, broken = _write_arrays(source, settings, folder)
    sidecars: Sidecars = {}
    if (labels := source.labels) is not None:
        sidecars["labels"] = {split: [labels[name] for name in names[split]] for split in SPLITS}
        if settings.condition:
            _write_classes(folder, sidecars["labels"])
    if (groups := source.groups) is not None:
        numbers = {group: number for number, group in enumerate(sorted({*groups.values()}))}
        sidecars["groups"] = {
            split: [numbers[groups[name]] for name in names[split]] for split in SPLITS
        }
    duplicates = _count_duplicates(folder)
    notes = _notes(np.load(folder / "train.npy", mmap_mode="r"), duplicates)
    others = {
        f"*{suffix or '.'}": f"{count} files that are not {', '.join(SUFFIXES)}"
        for suffix, count in source.other_files.most_common()
    }
    listed = islice({**others, **source.skipped, **broken}.items(), MAX_LISTED)
    manifest = {
        **settings.form,
        "source": settings.source,
        "path": settings.path,
        "split": source.split_rule,
        "split_note": "; ".join(filter(None, [source.note, *notes])) or None,
        "seed": settings.seed,
        "duplicates": duplicates,
        "skipped": [{"name": printable(name), "reason": printable(why)} for name, why in listed],
        "skipped_count": source.other_files.total() + len(source.skipped) + len(broken),
    }
    return manifest, sidecars


def _write_classes(folder: Path, labels: Mapping[str, list[Any]]) -> None:
    classes = {label for label in labels["train"] if isinstance(label, int)}
    is_complete = classes == set(range(len(classes))) and len(classes) >= MIN_CLASSES
    if not is_complete or any(set(values) - classes for values in labels.values()):
        expected = "training images of all labels from 0 to the largest one of any split"
        got = sorted(classes)
        raise unexpected("condition=label", expected, got, "Omit labels, other_labels or condition")
    for split, values in labels.items():
        save_context(folder / f"{split}.npy", np.array(values, np.int64))


def _write_arrays(
    source: Source, settings: ImageSettings, folder: Path
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Write the arrays; return the names of their images, by split, and the broken images."""
    pools = plan(source, settings.counts, settings.seed)
    total = sum(sum(sizes.values()) for _, sizes in pools)
    allowed = min(max(total // 100, BROKEN_FILES), total // 2)
    done, broken = dict[str, list[str]](), dict[str, str]()

    def read(name: str) -> tuple[str, np.ndarray | str]:
        try:
            image = source.image(name)
            return name, decode(image, **settings.form) if isinstance(image, bytes) else image
        except Exception as error:  # zips, disks and PIL's plugins raise many kinds of errors
            return name, f"{type(error).__name__}: {error}"

    def readable(
        images: Iterable[tuple[str, np.ndarray | str]], split: str
    ) -> Iterator[np.ndarray]:
        for name, image in images:
            if isinstance(image, np.ndarray):
                progress.update()
                done[split].append(name)
                yield image
            else:
                broken[name] = image
            if len(broken) > allowed:
                got = f"{len(broken)} so far, such as {name} ({image})"
                fix = "Repair or remove them, or set another path"
                raise unexpected("path", f"at most {allowed} broken images among {total}", got, fix)

    with ProgressBar("preparing images", "images", total) as progress:
        for names, sizes in pools:
            images = map_in_threads(read, names)
            for split, size in sizes.items():
                done[split] = []
                chunks = islice(readable(images, split), size)
                write_chunks(folder / f"{split}.npy", chunks, settings.event_shape, np.uint8)
    log.info("%s", progress)
    for split, names in done.items():
        wanted = getattr(settings.counts, split) or 1
        if len(names) < wanted:
            expected = f"at most {len(names)} readable images ({len(broken)} are broken)"
            raise unexpected(f"counts.{split}", expected, wanted, "Decrease it")
    return done, broken
