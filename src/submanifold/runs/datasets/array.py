"""Arrays on disk, which may be larger than memory."""

import base64
import mmap

import numpy as np
from kedro.io import AbstractDataset
from kedro_datasets._typing import ImagePreview

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write
from submanifold.data.arrays import map_whole
from submanifold.data.hashes import is_as_made
from submanifold.runs.datasets.path import Local


class ArrayDataset(Local, AbstractDataset[np.ndarray, np.ndarray]):
    """One ``.npy`` file, memory-mapped on load and written whole or not at all.

    Changes of a loaded array stay in memory (mode ``c``), so it can be handed to torch.
    """

    def load(self) -> np.ndarray:
        """Map the file."""
        return np.load(self._path, mmap_mode="c")

    def save(self, data: np.ndarray) -> None:
        """Write the array, unless it is this very file."""
        all_of_it = isinstance(data.base, mmap.mmap)  # not a slice of a file
        if all_of_it and isinstance(data, np.memmap) and data.filename == self._path.resolve():
            return
        with atomic_write(self._path) as partial, partial.open("wb") as file:
            np.save(file, data)

    def preview(self) -> ImagePreview:
        """Draw the first images, or, of latents, how normal they are."""
        from submanifold.plots.dimensions import latent_histogram
        from submanifold.plots.images import as_png, image_grid

        array = self.load()
        figure = image_grid(array[:64], columns=16) if array.ndim == 4 else latent_histogram(array)
        return ImagePreview(base64.b64encode(as_png(figure)).decode())

    def _exists(self) -> bool:
        return map_whole(self._path) is not None


class PreparedDataset(ArrayDataset):
    """One of the arrays that a source was made to; without their manifest's hash it is not used."""

    def load(self) -> np.ndarray:
        """Map the file.

        Raises:
            UserError: It, or another of the arrays, has changed since it was made.
        """
        if not is_as_made(self._path.parent):
            raise UserError(
                f"The arrays in {self._path.parent} are not as they were made: their hash is not "
                "that in manifest.json. Make them anew by kedro run --pipeline=data, with the same "
                "parameters."
            )
        return super().load()

    def _exists(self) -> bool:
        return super()._exists() and is_as_made(self._path.parent)
