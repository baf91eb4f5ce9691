"""The interface of image sources: an open source, and its entry in the registry."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.data.fields import ImageFields


@dataclass
class Source:
    """Named images and the splits they belong to."""

    names: list[str]  #: Sorted names of all images; of files in a folder relative to it.
    #: Reads an image by its name: an encoded file, or uint8 (channels, size, size). It is called in
    #: threads, and raises any kind of error for a broken file.
    image: Callable[[str], bytes | np.ndarray]
    splits: Mapping[str, str] | None = None  #: By name; None if an image may be in any split.
    split_rule: str = "random"  #: `cells`, `groups`, `official` or `random`.
    note: str = ""  #: A remark on the split for the user.
    labels: Mapping[str, Any] | None = None  #: JSON-able label of each name.
    groups: Mapping[str, str] | None = None  #: By name, each in one split; None if independent.
    skipped: dict[str, str] = field(default_factory=dict)  #: Images that are not read: reasons.
    other_files: Counter[str] = field(default_factory=Counter)  #: In other formats, by suffix.
    close: Callable[[], None] = lambda: None  #: Closes open files.


@dataclass(frozen=True)
class SourceType:
    """An entry of the registry: functions of the settings and the folder of downloads."""

    open: Callable[[ImageFields, Path], Source]  #: Opens, or first downloads, the source.
    #: Returns the files and folders that determine the images, by default the path; None if they
    #: are installed or downloaded, always the same.
    files: Callable[[ImageFields, Path], list[Path] | None] = lambda settings, raw_folder: (
        [settings.file] if settings.path else None
    )
    path: str | None = None  #: Description of the setting `path`, or None if it is not accepted.
    path_required: bool = False  #: Otherwise the source is downloaded without a path.
    image_files: bool = False  #: Whether images are files, with the setting `groups`.
    labels: bool = False  #: Whether images have labels, by which they can be selected.
    official_split: bool = False
