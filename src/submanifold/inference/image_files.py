"""Read images from files, folders and zips in the format that a model was trained on."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import printable, table_name
from submanifold.common.processes import check_memory, map_in_threads
from submanifold.data.images import SUFFIXES, decode, image_size, read_file
from submanifold.data.sources.stores import DATABASE, open_store

log = logging.getLogger(__name__)


class ImageFiles:
    """Images at some paths, decoded in threads. Unreadable ones are skipped with a warning.

    Args:
        paths: Image files, folders (searched recursively), zips, or LMDB folders.
        data: Format of the images, :attr:`submanifold.models.Model.data`.
        resize: Whether images of any size are cropped and resized; otherwise they are skipped.

    Attributes:
        unit: What is counted, ``images``.
        label: Name of the column of names in tables: ``picture``.
        names: Names of the images, escaped for messages and tables, including unreadable ones.
        skipped: ``{"name", "reason"}`` of each image that could not be read so far.
        files: The files that contain the images.

    Raises:
        UserError: A path contains no images.
    """

    unit, label = "images", "picture"

    def __init__(
        self, paths: Sequence[str | Path], data: Mapping[str, Any], resize: bool = True
    ) -> None:
        self.resize = resize
        keys = ("size", "channels", "crop", "margin")
        self.format = {key: data[key] for key in keys if key in data}
        self.skipped: list[dict[str, str]] = []
        self.files: list[Path] = []
        found = [image for path in paths for image in self._find(Path(path))]
        self.names = [name for name, _ in found]
        self._readers = [read for _, read in found]

    def __len__(self) -> int:
        """Return the number of images, including unreadable ones."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, size, size) of an image."""
        return self.format["channels"], self.format["size"], self.format["size"]

    def read(self, bytes_per_image: int = 0) -> tuple[list[str], np.ndarray]:
        """Read all images: the names of readable ones, and uint8 (N, channels, size, size).

        Raises a UserError if there are none, or if they, and ``bytes_per_image`` that are needed
        later, do not fit in memory.
        """
        check_memory("images", len(self), math.prod(self.shape) + bytes_per_image)
        images, numbers = np.empty((len(self), *self.shape), np.uint8), list[int]()
        for number, image in self.decoded():
            images[len(numbers)] = image
            numbers.append(number)
        self.check_readable(len(numbers))
        return [self.names[number] for number in numbers], images[: len(numbers)]

    def check_readable(self, count: int) -> None:
        """Raise a UserError if ``count``, the number of images that were read, is 0."""
        if not count:
            first = self.skipped[0] if self.skipped else {"name": "no paths", "reason": "empty"}
            raise UserError(f"No image could be read: {first['name']} ({first['reason']}).")

    def batches(self, size: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield numbers and pixels of readable images, which are decoded ahead in threads."""
        images = self.decoded(ahead=2 * size)
        while batch := list(islice(images, size)):
            numbers, pixels = zip(*batch, strict=True)
            yield list(numbers), np.stack(pixels)

    def decoded(
        self, numbers: Sequence[int] | None = None, ahead: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number and the pixels of each readable image, of all or in the order of some.

        They are decoded in threads, at least ``ahead`` images before they are used.
        """
        numbers = range(len(self)) if numbers is None else numbers
        for number, image in map_in_threads(self._decode, numbers, ahead):
            if isinstance(image, Exception):
                self._skip(self.names[number], f"{type(image).__name__}: {image}")
            else:
                yield number, image

    def _decode(self, number: int) -> tuple[int, np.ndarray | Exception]:
        try:
            content, side = self._readers[number](), self.format["size"]
            if not self.resize and (size := image_size(content)) != (side, side):
                got = "{} x {}".format(*size)
                raise ValueError(f"expected an observation of {side} x {side} pixels, got {got}")
            return number, decode(content, **self.format)
        except Exception as error:  # Pillow raises nearly anything
            return number, error

    def _find(self, path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
        shown = printable(str(path))
        is_folder = path.is_dir()
        try:
            if path.exists() and not is_folder and path.suffix.lower() in SUFFIXES:
                self.files.append(path)
                yield table_name(shown), partial(read_file, path)
                return
            if path.is_file() and path.suffix.lower() != ".zip":
                raise UserError(
                    f"{shown}: expected a folder, a zip, or a file with one of "
                    f"{', '.join(SUFFIXES)}, got another file."
                )
            store = open_store(path)
            names = store.names
        except OSError as error:
            raise UserError(f"{shown} cannot be read ({error.strerror}).") from error
        if not names:
            raise UserError(
                f"{shown}: expected files with one of {', '.join(SUFFIXES)}, got none. Hidden "
                "files and folders are ignored."
            )
        in_files = is_folder and not (path / DATABASE).is_file()
        self.files += [path / name for name in names] if in_files else [path]
        prefix = str(path) + ("/" if in_files else ":")
        for each in store.skipped:
            self._skip(table_name(prefix + each["name"]), each["reason"])
        for name in names:
            yield table_name(prefix + name), partial(store.read, name)

    def _skip(self, name: str, reason: str) -> None:
        log.warning("skipped %s (%s)", name, printable(reason))
        self.skipped.append({"name": name, "reason": printable(reason)})
