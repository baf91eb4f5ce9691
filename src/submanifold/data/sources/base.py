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
        names: Sorted names of all images; of files in a folder relative to it.
        image: Function of a name that reads an image: an encoded file, or uint8 (channels, size,
            size). It is called in threads, and raises any kind of error for a broken file.
        splits: The split of each name, or None if any image may be in any split.
        split_rule: `cells`, `groups`, `official` or `random`.
        note: A remark on the split for the user.
        labels: JSON-able label of each name, or None.
        groups: Group of each name, or None if all images are independent. No group is in two
            splits.
        skipped: `{"name", "reason"}` of images that are never read.
        other_files: Numbers of files in other formats, by suffix.
        close: Function that closes open files.
    """

    names: list[str]
    image: Callable[[str], bytes | np.ndarray]
    splits: Mapping[str, str] | None = None
    split_rule: str = "random"
    note: str = ""
    labels: Mapping[str, Any] | None = None
    groups: Mapping[str, str] | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class SourceType:
    """An entry of the registry: functions of the settings and the folder of downloads.

    Attributes:
        open: Opens the source; downloads it first if necessary.
        files: Returns the files and folders that determine the images, by default the path; None if
            they are installed or downloaded, always the same.
        path: Description of the setting `path`, or None if it is not accepted.
        path_required: Whether `path` must be set; otherwise the source is downloaded without it.
        image_files: Whether images are files, with the setting `groups`.
        labels: Whether images have labels, by which they can be selected.
        official_split: Whether there is an official split.
        crop: The crop, of :func:`submanifold.data.images.crop_and_resize`.
        url: Whether it can be downloaded from the address in the setting `url`.
    """

    open: Callable[[ImageSettings, Path], Source]
    files: Callable[[ImageSettings, Path], list[Path] | None] = lambda settings, raw_folder: (
        [settings.file] if settings.path else None
    )
    path: str | None = None
    path_required: bool = False
    image_files: bool = False
    labels: bool = False
    official_split: bool = False
    crop: str = "square"
    url: bool = False
