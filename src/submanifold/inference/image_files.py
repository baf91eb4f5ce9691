"""Read images from files, folders and zips in the format that a model was trained on."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import printable, table_name
from submanifold.common.processes import check_memory, cores
from submanifold.data.images import SUFFIXES, decode, image_size, read_file
from submanifold.data.sources.stores import DATABASE, open_store

log = logging.getLogger(__name__)

CHUNK = 16
"""Number of images that a thread decodes at a time."""


class ImageFiles:
    """Images at some paths, decoded in threads. Unreadable ones are skipped with a warning.

    Args:
        paths: Image files, folders (searched recursively), zips, or LMDB folders.
        data: Format of the images, :attr:`submanifold.models.Model.data`.

    Attributes:
        unit: What is counted, ``images``.
        label: Name of the column of names in tables: ``picture``.
        names: Names of the images, escaped for messages and tables, including unreadable ones.
        skipped: ``{"name", "reason"}`` of each image that could not be read so far.
        files: The files that contain the images.

    Raises:
        UserError: A path contains no images.

    Example:
        >>> len(ImageFiles([], {"size": 32, "channels": 3, "crop": "square"}))
        0
    """

    unit, label = "images", "picture"

    def __init__(self, paths: Sequence[str | Path], data: Mapping[str, Any]) -> None:
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
        """Read all images.

        Args:
            bytes_per_image: Memory per image needed later, in addition to its pixels.

        Returns:
            Names and uint8 images (N, channels, size, size) of the readable images.

        Raises:
            UserError: No image can be read, or the images do not fit in memory.
        """
        check_memory("images", len(self), math.prod(self.shape) + bytes_per_image)
        names: list[str] = []
        images = np.empty((len(self), *self.shape), np.uint8)
        for number, image in self.decoded():
            images[len(names)] = image
            names.append(self.names[number])
        self.check_readable(len(names))
        return names, images[: len(names)]

    def check_readable(self, count: int) -> None:
        """Raise a UserError if ``count``, the number of images that were read, is 0."""
        if not count:
            first = self.skipped[0] if self.skipped else {"name": "no paths", "reason": "empty"}
            raise UserError(f"No image could be read: {first['name']} ({first['reason']}).")

    def batches(self, size: int, first: int = 0) -> Iterator[tuple[list[int], np.ndarray]]:
        """Read the images from number ``first`` on in batches, while the caller uses the last one.

        Yields:
            Numbers of ``size`` readable images, and the images, uint8 (size, channels, size, size);
            fewer in the last batch.
        """
        images = self.decoded(range(first, len(self)), ahead=2 * size)
        while batch := list(islice(images, size)):
            numbers, pixels = zip(*batch, strict=True)
            yield list(numbers), np.stack(pixels)

    def decoded(
        self, numbers: Sequence[int] | None = None, ahead: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Decode images in threads, at least ``ahead`` images before they are used.

        Args:
            numbers: Numbers of the images; all by default.
            ahead: Number of images.

        Yields:
            Number and pixels of each readable image, in the given order.
        """
        numbers = range(len(self)) if numbers is None else numbers
        chunks = (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))
        window = max(2 * cores(), -(-ahead // CHUNK))
        executor = ThreadPoolExecutor(cores())
        try:
            waiting = deque(executor.submit(self._decode, each) for each in islice(chunks, window))
            while waiting:
                for number, image in waiting.popleft().result():
                    if isinstance(image, Exception):
                        self._skip(self.names[number], f"{type(image).__name__}: {image}")
                    else:
                        yield number, image
                waiting.extend(executor.submit(self._decode, each) for each in islice(chunks, 1))
        finally:
            executor.shutdown(cancel_futures=True)

    def sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Read the names and sizes (width, height) of the readable images."""
        for name, read in zip(self.names, self._readers, strict=True):
            try:
                size = image_size(read())
            except Exception:  # Pillow raises nearly anything
                continue
            yield name, size

    def _decode(self, numbers: Sequence[int]) -> list[tuple[int, np.ndarray | Exception]]:
        found: list[tuple[int, np.ndarray | Exception]] = []
        for number in numbers:
            try:
                found.append((number, decode(self._readers[number](), **self.format)))
            except Exception as error:  # Pillow raises nearly anything
                found.append((number, error))
        return found

    def _find(self, path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
        shown = printable(str(path))
        is_folder = path.is_dir()
        try:
            if path.exists() and not is_folder and path.suffix.lower() in SUFFIXES:
                self.files.append(path)
                yield table_name(shown), partial(read_file, path)
                return
            if path.is_file() and path.suffix.lower() != ".zip":
                _refuse_table(path)
                raise UserError(
                    f"{shown}: expected a folder, a zip, or a file with one of "
                    f"{', '.join(SUFFIXES)}, got another file."
                )
            store = open_store(path)
            names = store.names()
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


def _refuse_table(path: Path) -> None:
    from submanifold.data.tables.files import is_table  # imports pandas

    if is_table(path):
        raise UserError(
            f"{printable(str(path))}: expected images, got a table: the model was trained on "
            "images. Use a model of a table."
        )
