"""Kedro datasets: arrays, models and paths."""

import base64
import json
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import ImagePreview, JSONPreview

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write
from submanifold.data.arrays import context_of_array, load_npy, map_npy, save_context
from submanifold.models import Model
from submanifold.models.io import is_intact


class LocalDataset(AbstractDataset[Any, Any]):
    """Base class of datasets at a local path, with metadata for Kedro-Viz.

    With ``CHECKS_FILE`` it verifies its own file; :class:`.FileHooks` does for all others.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class PathDataset(LocalDataset):
    """Loads as its own path: a file or folder that a node reads, or writes by itself."""

    CHECKS_FILE = True

    def load(self) -> Path:
        """Create the parent folder and return the path."""
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        return self._filepath

    def save(self, data: NoReturn) -> None:
        raise DatasetError(f"{self._filepath} cannot be an output.")

    def _exists(self) -> bool:
        return True


class ArrayDataset(LocalDataset):
    """A ``.npy`` file, loaded as a copy-on-write memory map and written atomically."""

    def load(self) -> np.ndarray:
        return load_npy(self._filepath)

    def save(self, data: np.ndarray) -> None:
        with atomic_write(self._filepath) as partial, partial.open("wb") as file:
            np.save(file, data)
        if (context := context_of_array(data)) is not None:
            save_context(self._filepath, context)

    def preview(self) -> ImagePreview:
        from submanifold.plots.curves import latent_histogram
        from submanifold.plots.images import as_png, image_grid

        array = self.load()
        figure = image_grid(array[:64], columns=16) if array.ndim == 4 else latent_histogram(array)
        return ImagePreview(base64.b64encode(as_png(figure)).decode())

    def _exists(self) -> bool:
        return map_npy(self._filepath) is not None


class ArraysDataset(LocalDataset):
    """Named arrays in a compressed ``.npz`` file, written atomically."""

    def load(self) -> dict[str, np.ndarray]:
        with np.load(self._filepath) as arrays:
            return dict(arrays)

    def save(self, data: dict[str, np.ndarray]) -> None:
        with atomic_write(self._filepath) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **data)  # type: ignore[arg-type]

    def _exists(self) -> bool:
        return zipfile.is_zipfile(self._filepath)


class PreparedDataset(ArrayDataset):
    """An array that its node has written with a checksum, without which it does not exist."""

    CHECKS_FILE = True

    def save(self, data: np.ndarray) -> None:
        """Do nothing."""

    def load(self) -> np.ndarray:
        """Map the file; raise a :class:`UserError` if it has changed on disk."""
        if not self._exists():
            problem = f"The array {self._filepath} is missing or does not have its checksum"
            fix = "Prepare it again: kedro run --pipeline=data with the same parameters"
            raise UserError(f"{problem}. {fix}.")
        return super().load()


class ModelDataset(LocalDataset):
    """A model in a safetensors file, with its configuration and notes in the header."""

    CHECKS_FILE = True

    def load(self) -> Model:
        return Model.load(self._filepath)

    def save(self, data: Model) -> None:
        """Write the model; its notes include the folder's name, which is the cache key."""
        data.notes = {**data.notes, "key": self._filepath.parent.name}
        data.save(self._filepath)

    def preview(self) -> JSONPreview:
        return JSONPreview(json.dumps(self.load().describe()))

    def _exists(self) -> bool:
        return self._filepath.is_file() and is_intact(self._filepath)
