"""Read images from files, folders and zips in the format that a model was trained on."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import printable, table_name
from submanifold.common.processes import check_memory
from submanifold.data.images import SUFFIXES, decode, read_file
from submanifold.data.sources.stores import DATABASE, open_store

log = logging.getLogger(__name__)


class ImageFiles:
    """Images at some paths. Unreadable ones are skipped with a warning.

    Args:
        paths: Image files, folders (searched recursively), zips, or LMDB folders.
        data: Format of the images, :attr:`submanifold.models.Model.data`.

    Attributes:
        skipped: ``{"name", "reason"}`` of each image that could not be read so far.
        files: The files that contain the images.

    Raises:
        UserError: A path contains no images, or the model was not trained on images.

    Example:
        >>> len(ImageFiles([], {"size": 32, "channels": 3, "crop": "square"}))
        0
    """

    def __init__(self, paths: Sequence[str | Path], data: Mapping[str, Any]) -> None:
        if "size" not in data:
            raise UserError(
                "model: expected a model of images, got one without an image size. Use the "
                "hierarchy.safetensors of a run on images."
            )
        keys = ("size", "channels", "crop", "margin")
        self.format = {key: data[key] for key in keys if key in data}
        self.skipped: list[dict[str, str]] = []
        self.files: list[Path] = []
        self._images = [image for path in paths for image in self._find(Path(path))]

    def __len__(self) -> int:
        """Return the number of images, including unreadable ones."""
        return len(self._images)

    def read(self, bytes_per_image: int = 0) -> tuple[list[str], np.ndarray]:
        """Read all images.

        Args:
            bytes_per_image: Memory per image needed later, in addition to its pixels.

        Returns:
            Names, escaped for messages and tables, and uint8 images (N, channels, size, size).

        Raises:
            UserError: No image can be read, or the images do not fit in memory.
        """
        shape = (self.format["channels"], self.format["size"], self.format["size"])
        check_memory("images", len(self), math.prod(shape) + bytes_per_image)
        names: list[str] = []
        images = np.empty((len(self), *shape), np.uint8)
        for name, read in self._images:
            try:
                images[len(names)] = decode(read(), **self.format)
            except Exception as error:  # noqa: PERF203  # Pillow raises nearly anything
                self._skip(name, f"{type(error).__name__}: {error}")
            else:
                names.append(name)
        if not names:
            first = self.skipped[0] if self.skipped else {"name": "no paths", "reason": "empty"}
            raise UserError(f"No image could be read: {first['name']} ({first['reason']}).")
        return names, images[: len(names)]

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
