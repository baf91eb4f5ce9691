"""Arrays on disk, which may be larger than memory."""

import base64
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from kedro.io import AbstractDataset
from kedro_datasets._typing import ImagePreview

from submanifold.figures import as_png, image_grid, latent_histogram


class ArrayDataset(AbstractDataset[np.ndarray, np.ndarray]):
    """One ``.npy`` file, memory-mapped on load and written atomically.

    Changes of a loaded array stay in memory (mode ``c``), so it can be handed to torch.

    Args:
        filepath: The file.
        metadata: For other tools, such as Kedro-Viz; not used.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._path = Path(filepath)
        self.metadata = metadata

    def load(self) -> np.ndarray:
        """Map the file."""
        return np.load(self._path, mmap_mode="c")

    def save(self, data: np.ndarray) -> None:
        """Write the array, unless it is this very file."""
        whole = isinstance(data.base, mmap.mmap)  # not a slice of a file
        if whole and isinstance(data, np.memmap) and data.filename == self._path.resolve():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".part")
        with partial.open("wb") as file:
            np.save(file, data)
        os.replace(partial, self._path)

    def preview(self) -> ImagePreview:
        """Draw the first images, or, of latents, how normal they are."""
        array = self.load()
        figure = image_grid(array[:64], columns=16) if array.ndim == 4 else latent_histogram(array)
        return ImagePreview(base64.b64encode(as_png(figure)).decode())

    def _exists(self) -> bool:
        return self._path.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}
