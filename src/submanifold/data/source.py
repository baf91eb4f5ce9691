"""What every source of images offers."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Source:
    """Named images, and the splits they go to.

    Attributes:
        names: All images, sorted.
        read: Function of a name: what is stored, bytes or pixels.
        decode: Function of what is stored: the image, uint8 (channels, size, size). Other processes
            can be given it, and it raises whatever a broken file makes it raise.
        parts: The split each name belongs to, or None: any may go anywhere.
        rule: The split rule: `cells`, `groups`, `official` or `random`.
        labels: What each name's image shows, JSON-able, or None.
        groups: The group of each name, whose images are not independent of each other; no group is
            in two splits. None: all images are independent.
        crop: What of a picture is kept.
        note: What the user should know about the split, or None.
        skipped: `{"name", "reason"}` of what is never read.
        others: Counts of files that are not images of a known format, by suffix.
        close: Function that lets go of open files.
    """

    names: list[str]
    read: Callable[[str], Any]
    decode: Callable[[Any], np.ndarray]
    parts: Mapping[str, str] | None
    rule: str
    crop: str
    note: str | None = None
    labels: Mapping[str, Any] | None = None
    groups: Mapping[str, str] | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    close: Callable[[], None] = lambda: None

    def image(self, name: str) -> np.ndarray:
        """Read and decode an image."""
        return self.decode(self.read(name))
