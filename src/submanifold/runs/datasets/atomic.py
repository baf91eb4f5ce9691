"""Kedro's single-file datasets with atomic writes; incomplete files do not exist."""

import base64
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError
from kedro_datasets import json as kedro_json
from kedro_datasets import pandas, plotly, text
from kedro_datasets._typing import ImagePreview

from submanifold.common.files import atomic_write, read_json


class AtomicMixin:
    """Makes ``save`` of a local, unversioned dataset of one file atomic.

    Attributes:
        end: The bytes at the end of every complete file.
    """

    end = b""
    _filepath: PurePosixPath

    def save(self, data: Any) -> None:
        """Write a temporary file and rename it."""
        with atomic_write(Path(self._filepath)) as partial:
            copy = self._copy(_filepath=PurePosixPath(partial))  # type: ignore[attr-defined]
            super(AtomicMixin, copy).save(data)  # type: ignore[misc]

    def _exists(self) -> bool:
        path = Path(self._filepath)
        content = path.read_bytes() if path.is_file() else b""
        return content != b"" and content.endswith(self.end)


class AtomicJSONMixin(AtomicMixin):
    """The mixin for JSON files."""

    def save(self, data: Any) -> None:
        """Write the file, unless it has this content."""
        if data is None or read_json(Path(self._filepath)) != data:
            super().save(data)

    def _exists(self) -> bool:
        return read_json(Path(self._filepath)) is not None


class JSONDataset(AtomicJSONMixin, kedro_json.JSONDataset):
    """A JSON file."""


class PlotlyDataset(AtomicJSONMixin, plotly.JSONDataset):
    """A plotly figure as a JSON file."""


class CSVDataset(AtomicMixin, pandas.CSVDataset):
    """A CSV file."""

    end = b"\n"


class TextDataset(AtomicMixin, text.TextDataset):
    """A text file that is not empty."""


class _FigureDataset(AbstractDataset[Any, NoReturn]):
    """A matplotlib figure; importing Kedro's dataset loads pyplot, which every run would wait for.

    Args:
        filepath: The PNG file.
        save_args: Arguments of ``Figure.savefig``.
        metadata: For hooks and Kedro-Viz.
    """

    def __init__(
        self,
        *,
        filepath: str,
        save_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._filepath, self._save_args = PurePosixPath(filepath), save_args or {}
        self.metadata = metadata

    def load(self) -> NoReturn:
        """Raise an error: a figure is an output."""
        raise DatasetError("Loading not supported for 'MatplotlibDataset'")

    def save(self, data: Any) -> None:
        """Write the figure."""
        data.savefig(str(self._filepath), format="png", **self._save_args)

    def preview(self) -> ImagePreview:
        """Return the image."""
        return ImagePreview(base64.b64encode(Path(self._filepath).read_bytes()).decode())

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "save_args": self._save_args}


class MatplotlibDataset(AtomicMixin, _FigureDataset):
    """A matplotlib figure as a PNG file."""

    end = b"IEND\xaeB`\x82"
