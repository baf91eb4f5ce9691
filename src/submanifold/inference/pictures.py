"""Pictures in files, folders and zips, made as those that a model was trained on."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import printable, table_name
from submanifold.common.processes import check_memory
from submanifold.data.images import SUFFIXES, decode, read_file
from submanifold.data.sources.stores import DATABASE, open_store

log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """A file's name (see :func:`submanifold.common.files.table_name`) and how to read it."""

    name: str
    read: Callable[[], bytes]


class Pictures:
    """Pictures at some places, read in batches; those that cannot be read are passed over.

    Args:
        places: Files, folders (with all that lies below), zips, or LMDB folders.
        data: What a model knows of its images: :attr:`submanifold.models.Model.data`.

    Attributes:
        skipped: `{"name", "reason"}` of what could not be read so far.
        files: The files that hold the pictures.

    Raises:
        UserError: If there is no picture at a place, or the model was not trained on images.

    Example:
        >>> data = {"size": 32, "channels": 3, "crop": "square"}
        >>> import submanifold.data.sources.photos
        >>> len(Pictures([], data))
        0
    """

    def __init__(self, places: Sequence[str | Path], data: Mapping[str, Any]):
        if "size" not in data:
            raise UserError(
                "The model's file does not say what images it was trained on, so that no picture "
                "can be made alike. Give a hierarchy.safetensors of a run on images."
            )
        self.form = {name: data[name] for name in ("size", "channels", "crop", "margin")
                     if name in data}  # fmt: skip
        self.skipped: list[dict[str, str]] = []
        self.files: list[Path] = []
        self.found = [picture for place in places for picture in self._at(Path(place))]

    def __len__(self) -> int:
        """Count the pictures, those that cannot be read too."""
        return len(self.found)

    def _at(self, place: Path) -> list[Picture]:
        with suppress(RuntimeError):  # no user has that name: it is a file's
            place = place.expanduser()
        given = printable(str(place))
        try:
            return self._listed(place, given)
        except OSError as error:
            raise UserError(f"{given} cannot be read ({error.strerror}).") from error

    def _listed(self, place: Path, given: str) -> list[Picture]:
        if place.exists() and not place.is_dir() and place.suffix.lower() in SUFFIXES:
            self.files.append(place)
            return [Picture(table_name(given), partial(read_file, place))]
        if place.is_file() and place.suffix.lower() != ".zip":
            raise UserError(
                f"{given} is no picture: files with {', '.join(SUFFIXES)} count, zips of them, and "
                "folders."
            )
        store = open_store(place)
        names = store.names()
        if not names:
            raise UserError(
                f"There are no pictures in {given}: files with {', '.join(SUFFIXES)} count, in any "
                "folder below it (hidden ones are passed over)."
            )
        in_files = place.is_dir() and not (place / DATABASE).is_file()
        self.files += [place / name for name in names] if in_files else [place]
        start = str(place) + ("/" if in_files else ":")
        for each in store.skipped:
            self._skip(table_name(start + each["name"]), each["reason"])
        return [Picture(table_name(start + name), partial(store.read, name)) for name in names]

    def _skip(self, name: str, reason: str) -> None:
        reason = printable(reason)
        log.warning("%s is passed over (%s)", name, reason)
        self.skipped.append({"name": name, "reason": reason})

    def batches(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Names, and uint8 (at most so many, channels, size, size), as long as there are some."""
        for start in range(0, len(self.found), size):
            each = [(picture.name, self._decoded(picture)) for picture in self.found[start:][:size]]
            read = [(name, image) for name, image in each if image is not None]
            if read:
                names, images = zip(*read, strict=True)
                yield list(names), np.stack(images)

    def _decoded(self, picture: Picture) -> np.ndarray | None:
        try:
            return decode(picture.read(), **self.form)
        except Exception as error:  # PIL's plugins raise nearly every kind on a broken file
            self._skip(picture.name, f"{type(error).__name__}: {error}")
            return None

    def all(self, batch_size: int = 64, each: int = 0) -> tuple[list[str], np.ndarray]:
        """Names, and all images that can be read.

        Args:
            batch_size: Images that are decoded at a time.
            each: Bytes of memory that is needed later for each image, besides the image.

        Raises:
            UserError: If none can be read, or they do not fit in memory.
        """
        shape = (self.form["channels"], self.form["size"], self.form["size"])
        check_memory("pictures", len(self), math.prod(shape) + each)
        names: list[str] = []
        images = np.empty((len(self), *shape), np.uint8)
        for read, array in self.batches(batch_size):
            images[len(names) : len(names) + len(read)] = array
            names += read
        if not names:
            why = self.skipped[0] if self.skipped else {"name": "nothing", "reason": "none given"}
            raise UserError(f"None of the pictures can be read: {why['name']} ({why['reason']}).")
        return names, images[: len(names)]
