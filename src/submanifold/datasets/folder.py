"""A folder that a node works in."""

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError


class FolderDataset(AbstractDataset[NoReturn, Path]):
    """Loads as the path of a folder, where a node keeps what it needs to go on after a kill.

    Args:
        filepath: The folder; it is made when loaded.
        metadata: For other tools, such as Kedro-Viz; not used.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._path = Path(filepath)
        self.metadata = metadata

    def load(self) -> Path:
        """Make the folder and return its path."""
        self._path.mkdir(parents=True, exist_ok=True)
        return self._path

    def save(self, data: NoReturn) -> None:
        """Refuse: a folder is an input."""
        raise DatasetError(f"The folder {self._path} cannot be an output.")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}
