"""Trained stages and hierarchies."""

import json
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview

from submanifold.manifold import Hierarchy


class FlowDataset(AbstractDataset[Hierarchy, Hierarchy]):
    """A hierarchy in one safetensors file: weights, and in its header architecture and notes.

    Args:
        filepath: The file.
        metadata: For other tools, such as Kedro-Viz; not used.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._path = Path(filepath)
        self.metadata = metadata

    def load(self) -> Hierarchy:
        """Rebuild the hierarchy, on the CPU."""
        return Hierarchy.load(self._path)

    def save(self, data: Hierarchy) -> None:
        """Write the hierarchy atomically; its folder's name, the artifact's key, goes with it."""
        data.notes = {**data.notes, "key": self._path.parent.name}
        data.save(self._path)

    def preview(self) -> JSONPreview:
        """Show architecture and notes."""
        return JSONPreview(json.dumps(self.load().describe()))

    def _exists(self) -> bool:
        return self._path.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._path)}
