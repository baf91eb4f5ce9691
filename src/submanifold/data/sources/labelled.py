"""Labelled data sets in memory, with official splits."""

from __future__ import annotations

import gzip
import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.data.images import crop_and_resize
from submanifold.data.sources.base import Source

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings


class Labelled(NamedTuple):
    """One official split.

    Attributes:
        images: uint8 (N, height, width), or (N, height, width, 3).
        labels: integers (N,), or (N, several).
    """

    images: np.ndarray
    labels: np.ndarray


def open_labelled(settings: ImageSettings, data: dict[str, Labelled]) -> Source:
    """Make a source of official splits; without a validation split it is taken from train."""
    data = _select_labels(settings, data)
    names = {split: [f"{split}/{n:06d}" for n in range(len(each.images))]
             for split, each in data.items()}  # fmt: skip
    labels: dict[str, Any] = {}
    for split, each in data.items():
        labels |= zip(names[split], each.labels.tolist(), strict=True)
    splits = {name: split for split, each in names.items() for name in each}
    official = settings.split == "official"
    if official and "valid" not in data:
        train = names["train"]
        valid = settings.counts.valid or max(1, len(train) // 10)
        if valid >= len(train):
            raise UserError(
                f"counts.valid: expected less than the {len(train)} training images, which include "
                f"the validation images, got {valid}. Decrease it."
            )
        order = np.random.default_rng(settings.seed).permutation(len(train))
        splits |= {train[n]: "valid" for n in order[:valid].tolist()}

    def read(name: str) -> np.ndarray:
        split, _, number = name.partition("/")
        return data[split].images[int(number)]

    return Source(
        names=sorted(labels),
        read=read,
        decode=partial(_decode, **settings.form),
        splits=splits if official else None,
        split_rule=settings.split,
        crop=settings.crop_rule,
        labels=labels,
    )


def _decode(pixels: np.ndarray, **form: Any) -> np.ndarray:
    return crop_and_resize(Image.fromarray(pixels), **form)


def _select_labels(settings: ImageSettings, data: dict[str, Labelled]) -> dict[str, Labelled]:
    setting = "labels" if settings.labels else "other_labels"
    chosen = settings.labels or settings.other_labels
    if chosen is None:
        return data
    if any(each.labels.ndim > 1 for each in data.values()):
        raise UserError(
            f"{setting}: expected none for images with several labels, got {list(chosen)}. Omit it."
        )
    existing = {int(label) for each in data.values() for label in np.unique(each.labels)}
    if not set(chosen) <= existing or (settings.labels is None and set(chosen) == existing):
        raise UserError(
            f"{setting}: expected some of the labels {sorted(existing)}, got {list(chosen)}. "
            "Correct it."
        )
    kept = {split: np.isin(each.labels, chosen, invert=settings.labels is None)
            for split, each in data.items()}  # fmt: skip
    return {split: Labelled(each.images[kept[split]], each.labels[kept[split]])
            for split, each in data.items()}  # fmt: skip


def open_unpacked(file: Path) -> BinaryIO:
    """Open a file, decompressing it if it is a gzip file."""
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else open(file, "rb")


def fingerprint_unpacked(files: list[Path]) -> str:
    """Hash of the unpacked content of files; cached until their sizes or times change."""
    stats = [(file, file.stat()) for file in files]
    return _digest(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, *_ in files:
        if not file.is_file():  # reading a pipe may block
            raise OSError(f"{file}, which is not a file")
        with open_unpacked(file) as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return f"files:{digest.hexdigest()[:32]}"
