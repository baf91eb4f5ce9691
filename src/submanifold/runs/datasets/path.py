"""Paths that a node works at."""

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from submanifold.common.files import make_folder


class Local:
    """What datasets at a path of this machine share.

    Args:
        filepath: The path.
        metadata: For other tools, such as Kedro-Viz; not used.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._path = Path(filepath)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}


class PathDataset(Local, AbstractDataset[NoReturn, Path]):
    """Loads as its own path: a file or folder where a node keeps what it needs to go on."""

    def load(self) -> Path:
        """Make the folder around it and return the path."""
        make_folder(self._path.parent)
        return self._path

    def save(self, data: NoReturn) -> None:
        """Refuse: a path is an input."""
        raise DatasetError(f"The path {self._path} cannot be an output.")

    def _exists(self) -> bool:
        return True
