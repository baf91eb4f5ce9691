"""Trained models."""

import json

from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview

from submanifold.models import Model
from submanifold.models.io import is_intact
from submanifold.runs.datasets.path import Local


class ModelDataset(Local, AbstractDataset[Model, Model]):
    """A model in one safetensors file: weights, and in its header architecture, notes and data."""

    def load(self) -> Model:
        """Rebuild the model, on the CPU."""
        return Model.load(self._path)

    def save(self, data: Model) -> None:
        """Write the model, whole; its folder's name, the artifact's key, goes with it."""
        data.notes = {**data.notes, "key": self._path.parent.name}
        data.save(self._path)

    def preview(self) -> JSONPreview:
        """Show architecture and notes."""
        return JSONPreview(json.dumps(self.load().describe()))

    def _exists(self) -> bool:
        return self._path.is_file() and is_intact(self._path)
