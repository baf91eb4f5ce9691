"""Kedro datasets: arrays, models, paths, and Kedro's file datasets with atomic writes."""

import base64
import json
import mmap
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

import numpy as np
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets import json as kedro_json
from kedro_datasets import pandas, plotly, text
from kedro_datasets._typing import ImagePreview, JSONPreview

from submanifold.common.errors import UserError
from submanifold.common.files import (
    atomic_write,
    is_unchanged,
    make_folder,
    read_json,
    write_checksum,
)
from submanifold.data.arrays import (
    are_intact,
    context_of_array,
    load_npy,
    map_npy,
    save_context,
)
from submanifold.models import Model
from submanifold.models.io import is_intact
from submanifold.runs.information import information

Saved = TypeVar("Saved")
Loaded = TypeVar("Loaded")

PNG_END = b"IEND\xaeB`\x82"


class AtomicMixin:
    """Makes ``save`` of a local, unversioned dataset of one file atomic.

    Attributes:
        end: The bytes at the end of every complete file.
    """

    end = b""
    _filepath: PurePosixPath

    def load(self) -> Any:
        """Read the file, which must have its checksum."""
        _check_unchanged(Path(self._filepath))
        return super().load()  # type: ignore[misc]

    def save(self, data: Any) -> None:
        """Write a temporary file and rename it; write its checksum."""
        with atomic_write(Path(self._filepath)) as partial:
            copy = self._copy(_filepath=PurePosixPath(partial))  # type: ignore[attr-defined]
            super(AtomicMixin, copy).save(data)  # type: ignore[misc]
        write_checksum(Path(self._filepath))

    def _exists(self) -> bool:
        path = Path(self._filepath)
        return _is_complete(path, self.end) and is_unchanged(path)


def _check_unchanged(path: Path) -> None:
    if not is_unchanged(path):
        raise UserError(
            f"{path}: expected the content that was written, got another one. Delete it and repeat "
            "the command, which makes it again."
        )


def _is_complete(path: Path, end: bytes) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return content != b"" and content.endswith(end)


class CSVDataset(AtomicMixin, pandas.CSVDataset):
    """A CSV file."""

    end = b"\n"


class TextDataset(AtomicMixin, text.TextDataset):
    """A text file that is not empty."""


class JSONDataset(AtomicMixin, kedro_json.JSONDataset):
    """A JSON file."""

    def save(self, data: Any) -> None:
        """Write the file, unless it has this content."""
        if data is None or read_json(Path(self._filepath)) != data:
            super().save(data)
        else:
            write_checksum(Path(self._filepath))

    def _exists(self) -> bool:
        return read_json(Path(self._filepath)) is not None


class PlotlyDataset(AtomicMixin, plotly.JSONDataset):
    """A plotly figure as a JSON file."""

    _exists = JSONDataset._exists


class LocalDataset(AbstractDataset[Saved, Loaded]):
    """Base class of datasets at a local path.

    Args:
        filepath: The path.
        metadata: For hooks and Kedro-Viz.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = Path(filepath)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class PathDataset(LocalDataset[NoReturn, Path]):
    """Loads as its own path: a file or folder that a node writes by itself."""

    def load(self) -> Path:
        """Create the parent folder and return the path."""
        make_folder(self._filepath.parent)
        return self._filepath

    def save(self, data: NoReturn) -> None:
        """Raise an error: a path is an input."""
        raise DatasetError(f"The path {self._filepath} cannot be an output.")

    def _exists(self) -> bool:
        return True


class MatplotlibDataset(LocalDataset[Any, NoReturn]):
    """A matplotlib figure as a PNG file; Kedro's dataset would import pyplot in every run."""

    def load(self) -> NoReturn:
        """Raise an error: a figure is an output."""
        raise DatasetError("Loading not supported for 'MatplotlibDataset'")

    def save(self, data: Any) -> None:
        """Write the figure."""
        from submanifold.plots.images import as_png  # matplotlib is slow to import

        with atomic_write(self._filepath) as partial:
            partial.write_bytes(as_png(data))

    def preview(self) -> ImagePreview:
        """Return the image."""
        return ImagePreview(base64.b64encode(self._filepath.read_bytes()).decode())

    def _exists(self) -> bool:
        return _is_complete(self._filepath, PNG_END)


class ArrayDataset(LocalDataset[np.ndarray, np.ndarray]):
    """A ``.npy`` file, loaded as a copy-on-write memory map and written atomically."""

    has_checksum = True

    def load(self) -> np.ndarray:
        """Map the file, which must have its checksum; changes stay in memory."""
        _check_unchanged(self._filepath)
        return load_npy(self._filepath)

    def save(self, data: np.ndarray) -> None:
        """Write the array, unless it is a map of this file."""
        whole_file = isinstance(data.base, mmap.mmap)  # rather than a slice of it
        path = data.filename if whole_file and isinstance(data, np.memmap) else None
        if path != self._filepath.resolve():
            with atomic_write(self._filepath) as partial, partial.open("wb") as file:
                np.save(file, data)
            if (context := context_of_array(data)) is not None:
                save_context(self._filepath, context)
        if self.has_checksum:
            write_checksum(self._filepath)

    def preview(self) -> ImagePreview:
        """Draw the first images, or a histogram of latents."""
        from submanifold.plots.dimensions import latent_histogram
        from submanifold.plots.images import as_png, image_grid

        array = self.load()
        figure = image_grid(array[:64], columns=16) if array.ndim == 4 else latent_histogram(array)
        return ImagePreview(base64.b64encode(as_png(figure)).decode())

    def _exists(self) -> bool:
        return map_npy(self._filepath) is not None


class ArraysDataset(LocalDataset[dict[str, np.ndarray], dict[str, np.ndarray]]):
    """Named arrays in a compressed ``.npz`` file, written atomically."""

    def load(self) -> dict[str, np.ndarray]:
        """Read all arrays."""
        with np.load(self._filepath) as arrays:
            return dict(arrays)

    def save(self, data: dict[str, np.ndarray]) -> None:
        """Write the arrays."""
        with atomic_write(self._filepath) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **data)  # type: ignore[arg-type]

    def _exists(self) -> bool:
        return zipfile.is_zipfile(self._filepath)


class RunInformationDataset(LocalDataset[NoReturn, dict[str, Any]]):
    """Loads as facts about the current run (:func:`submanifold.runs.information.information`).

    It is an input of reports, which are cached: a report names the run that wrote it. The path is
    that of the model.
    """

    def load(self) -> dict[str, Any]:
        """Collect the facts."""
        return information(self._filepath)

    def save(self, data: NoReturn) -> None:
        """Raise an error: the facts are an input."""
        raise DatasetError("Facts about a run cannot be an output.")

    def _exists(self) -> bool:
        return True


class PreparedDataset(ArrayDataset):
    """An array of a prepared dataset, which exists only if the manifest's hash matches."""

    has_checksum = False  # but a hash in the manifest

    def load(self) -> np.ndarray:
        """Map the file.

        Raises:
            UserError: The prepared arrays have changed on disk.
        """
        if not are_intact(self._filepath.parent):
            raise UserError(
                f"The arrays in {self._filepath.parent} do not match the hash in their "
                "manifest.json. Prepare them again: kedro run --pipeline=data with the same "
                "parameters."
            )
        return super().load()

    def _exists(self) -> bool:
        return super()._exists() and are_intact(self._filepath.parent)


class ModelDataset(LocalDataset[Model, Model]):
    """A model in a safetensors file, with its configuration and notes in the header."""

    def load(self) -> Model:
        """Load the model to the CPU."""
        return Model.load(self._filepath)

    def save(self, data: Model) -> None:
        """Write the model; its notes include the folder's name, which is the cache key."""
        data.notes = {**data.notes, "key": self._filepath.parent.name}
        data.save(self._filepath)

    def preview(self) -> JSONPreview:
        """Return the architecture and the notes."""
        return JSONPreview(json.dumps(self.load().describe()))

    def _exists(self) -> bool:
        return self._filepath.is_file() and is_intact(self._filepath)
