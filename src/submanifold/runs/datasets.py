"""Kedro datasets: atomic files, arrays, events, models and paths."""

import base64
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any, NewType, NoReturn

import numpy as np
from kedro.io import AbstractDataset, DatasetError

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write
from submanifold.data.arrays import load_events, save_events
from submanifold.data.events import Events
from submanifold.models import Model

log = logging.getLogger(__name__)

# Kedro-Viz recognizes previews by the names of these types; Kedro's own are private
ImagePreview = NewType("ImagePreview", str)
JSONPreview = NewType("JSONPreview", str)


class DamagedFile(UserError, DatasetError):  # noqa: N818
    """A file of the cache could not be read; it was moved aside, so that it is computed again."""

    def __init__(self, path: Path, reason: object) -> None:
        text = " ".join(str(reason).split()).removesuffix(".")
        try:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            fix = f"It is now {path.name}.damaged; a run with the same settings computes it again."
        except OSError:  # of a read-only disk
            fix = "Delete it; a run with the same settings computes it again."
        super().__init__(f"{path}: expected a whole file, got a damaged one ({text}). {fix}")
        self.path = path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Raise :class:`DamagedFile` if a file cannot be read inside of this context."""
    try:
        yield path
    except Exception as error:  # each library raises others
        reason = (error.__cause__ or error) if isinstance(error, DatasetError) else error
        if isinstance(reason, OSError | MemoryError) or not path.exists():
            raise
        raise DamagedFile(path, reason) from error


class LocalDataset(AbstractDataset[Any, Any]):
    """Base class of datasets at a local path, with metadata for Kedro-Viz."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def _exists(self) -> bool:
        return self._filepath.exists()

    def _existing(self) -> Path:
        if not self._filepath.exists():
            fix = "`submanifold run` with the same parameters computes it"
            raise DatasetError(f"{self._filepath}: not computed for these settings. {fix}.")
        return self._filepath


class AtomicDataset(LocalDataset):
    """A file of another dataset that is written atomically: one that exists is whole.

    ``dataset`` is the type of the other dataset, or its entry without the path.
    """

    def __init__(
        self,
        *,
        filepath: str,
        dataset: str | dict[str, Any],
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__(filepath=filepath, metadata=metadata)
        self._entry = {"type": dataset} if isinstance(dataset, str) else dataset
        if hasattr(final := self._at(self._filepath), "preview"):
            self.preview = final.preview

    def load(self) -> Any:
        with whole(self._existing()) as path:
            content = self._at(path).load()
            # a table that was cut off can be read
            if path.suffix == ".csv" and not path.read_bytes().endswith(b"\n"):
                raise ValueError("the last line has no end")
        return content

    def save(self, data: Any) -> None:
        with atomic_write(self._filepath) as partial:
            self._at(partial).save(data)

    def _exists(self) -> bool:
        """Whether the file exists; a JSON file, which is read fast, must be whole."""
        if self._filepath.suffix != ".json" or not self._filepath.exists():
            return self._filepath.exists()
        try:
            self.load()
        except DamagedFile as error:
            log.warning("%s", error.message)
            return False
        return True

    def _at(self, path: Path) -> AbstractDataset[Any, Any]:
        return AbstractDataset.from_config(path.name, {**self._entry, "filepath": str(path)})


class PathDataset(LocalDataset):
    """Loads as its own path: a file or folder that a node reads, or writes by itself."""

    def load(self) -> Path:
        """Create the parent folder and return the path."""
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        return self._filepath

    def save(self, data: NoReturn) -> None:
        raise DatasetError(f"{self._filepath} cannot be an output.")

    def _exists(self) -> bool:
        return True


class ArrayDataset(LocalDataset):
    """A ``.npy`` file, loaded as a copy-on-write memory map."""

    def load(self) -> np.ndarray:
        with whole(self._existing()) as path:
            return np.load(path, mmap_mode="c")

    def save(self, data: np.ndarray) -> None:
        with atomic_write(self._filepath) as partial, partial.open("wb") as file:
            np.save(file, data)

    def preview(self) -> ImagePreview:
        return self._preview(self.load())

    def _preview(self, array: np.ndarray) -> ImagePreview:
        from submanifold.plots.images import as_png, image_grid

        if array.ndim != 4:
            raise DatasetError(f"{self._filepath}: only images have a preview.")
        return ImagePreview(base64.b64encode(as_png(image_grid(array[:64], 16))).decode())


class EventsDataset(ArrayDataset):
    """Events in a ``.npy`` file, with their contexts and groups in files beside it.

    The splits of prepared data also have the labels and rows that were written with them.
    """

    def load(self) -> Events:  # type: ignore[override]
        with whole(self._existing()) as path:
            return load_events(path)

    def save(self, data: Events) -> None:  # type: ignore[override]
        """Write the events, unless they are a map of the file, which their node has written."""
        is_whole = isinstance(data.x.base, mmap)  # a map of a file rather than of a part of it
        if is_whole and getattr(data.x, "filename", None) == self._filepath.resolve():
            return
        save_events(self._filepath, data)

    def preview(self) -> ImagePreview:
        return self._preview(self.load().x)


class ArraysDataset(LocalDataset):
    """Named arrays in a compressed ``.npz`` file."""

    def load(self) -> dict[str, np.ndarray]:
        with whole(self._existing()) as path, np.load(path) as arrays:
            return dict(arrays)

    def save(self, data: dict[str, np.ndarray]) -> None:
        with atomic_write(self._filepath) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **data)  # type: ignore[arg-type]


class ModelDataset(LocalDataset):
    """A model in a safetensors file, with its configuration and notes in the header."""

    def load(self) -> Model:
        with whole(self._existing()) as path:
            return Model.load(path)

    def save(self, data: Model) -> None:
        """Write the model; its notes include the folder's name, which is the cache key."""
        notes = {**data.notes, "key": self._filepath.parent.name}
        data.with_facts(notes=notes).save(self._filepath)

    def preview(self) -> JSONPreview:
        return JSONPreview(json.dumps(self.load().describe()))
