"""Small labelled data sets in memory, with official splits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.data.images import crop_and_resize
from submanifold.data.sources.base import Source

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

MAX_RATIO = 100
"""Largest ratio of the sizes of a file unpacked and packed; these data sets stay below 20."""


class Labelled(NamedTuple):
    """One official split.

    Attributes:
        images: uint8 (N, height, width), or (N, height, width, 3).
        labels: integers (N,), or (N, several).
    """

    images: np.ndarray
    labels: np.ndarray


def open_labelled(settings: ImageSettings, data: dict[str, Labelled]) -> Source:
    """Make a source of official splits; validation images are taken from train if there are none.

    Raises:
        UserError: If the labels do not exist, or `counts.valid` leaves no training images.
    """
    data = select_labels(data, settings.labels, settings.other_labels)
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


def select_labels(
    data: dict[str, Labelled],
    labels: tuple[int, ...] | None,
    other_labels: tuple[int, ...] | None = None,
) -> dict[str, Labelled]:
    """Keep the images with one of the labels, or with none of the other labels.

    Raises:
        UserError: If a label does not exist, all are excluded, or an image has several labels.
    """
    if labels is None and other_labels is None:
        return data
    setting, chosen = ("labels", labels) if labels else ("other_labels", other_labels or ())
    if any(each.labels.ndim > 1 for each in data.values()):
        raise UserError(
            f"{setting}: expected none for images with several labels, got {list(chosen)}. Omit it."
        )
    existing = {int(label) for each in data.values() for label in np.unique(each.labels)}
    if not set(chosen) <= existing or (setting == "other_labels" and set(chosen) == existing):
        some = "" if setting == "labels" else "some, but not all "
        raise UserError(
            f"{setting}: expected {some}of the labels {sorted(existing)}, got {list(chosen)}. "
            "Correct it."
        )
    kept = {split: np.isin(each.labels, chosen, invert=setting == "other_labels")
            for split, each in data.items()}  # fmt: skip
    return {split: Labelled(each.images[kept[split]], each.labels[kept[split]])
            for split, each in data.items()}  # fmt: skip


def check_unpacked_size(file: Path, size: int) -> None:
    """Raise a ValueError if a file would unpack to far more than its own size."""
    packed = file.stat().st_size
    if not 0 <= size <= MAX_RATIO * packed:
        raise ValueError(
            f"{file.name} would unpack to {size} bytes, more than {MAX_RATIO} times its {packed}"
        )
