"""The interface of image sources: an open source, and its entry in the registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings


@dataclass
class Source:
    """Named images and the splits they belong to.

    Attributes:
        names: Sorted names of all images.
        read: Function of a name that returns the stored bytes or pixels.
        decode: Function of stored data that returns the image, uint8 (channels, size, size). It can
            be pickled, and raises any kind of error for a broken file.
        splits: The split of each name, or None if any image may be in any split.
        split_rule: `cells`, `groups`, `official` or `random`.
        crop: The part of each image that is kept.
        note: A remark on the split for the user, or None.
        labels: JSON-able label of each name, or None.
        groups: Group of each name, or None if all images are independent. No group is in two
            splits.
        skipped: `{"name", "reason"}` of images that are never read.
        other_files: Numbers of files in other formats, by suffix.
        close: Function that closes open files.
    """

    names: list[str]
    read: Callable[[str], Any]
    decode: Callable[[Any], np.ndarray]
    splits: Mapping[str, str] | None
    split_rule: str
    crop: str
    note: str | None = None
    labels: Mapping[str, Any] | None = None
    groups: Mapping[str, str] | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    close: Callable[[], None] = lambda: None

    def image(self, name: str) -> np.ndarray:
        """Read and decode an image."""
        return self.decode(self.read(name))


@dataclass(frozen=True)
class SourceType:
    """An entry of the registry: functions of the settings and the folder of downloads.

    Attributes:
        open: Opens the source; downloads it first if necessary.
        fingerprint: Returns an identity of the source's content without decoding it.
        must_download: Whether `open` may have to download the source.
        path: Description of the setting `path`, or None if it is not accepted.
        path_required: Whether `path` must be set.
        url: Whether the setting `url` is accepted.
        image_files: Whether images are files of any shape, for which `crop` and `groups` are
            accepted.
        labels: Whether images have labels, by which they can be selected.
        official_split: Whether there is an official split.
        crop: The crop of `crop=auto`.
    """

    open: Callable[[ImageSettings, Path], Source]
    fingerprint: Callable[[ImageSettings, Path], str]
    must_download: Callable[[ImageSettings, Path], bool] = lambda settings, raw_folder: False
    path: str | None = None
    path_required: bool = False
    url: bool = False
    image_files: bool = False
    labels: bool = False
    official_split: bool = False
    crop: str = "square"
