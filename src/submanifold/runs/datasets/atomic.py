"""Kedro's datasets of one file, written whole or not at all, and there only when they are whole."""

from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError
from kedro_datasets import json as kedro_json
from kedro_datasets import pandas, plotly, text
from kedro_datasets._typing import ImagePreview

from submanifold.common.files import atomic_write, read_json


class Whole:
    """What makes a dataset of kedro_datasets, in a local file without versions, whole.

    A file that an earlier version has half written, or a full disk, does not exist for Kedro.

    Attributes:
        end: What a whole file, which is not empty, ends with.
    """

    end = b""
    _filepath: PurePosixPath

    def save(self, data: Any) -> None:
        """Write beside the file, and give it its name at the end."""
        with atomic_write(Path(self._filepath)) as partial:
            twin = self._copy(_filepath=PurePosixPath(partial))  # type: ignore[attr-defined]
            super(Whole, twin).save(data)  # type: ignore[misc]

    def _exists(self) -> bool:
        path = Path(self._filepath)
        content = path.read_bytes() if path.is_file() else b""
        return content != b"" and content.endswith(self.end)


class WholeJSON(Whole):
    """A dataset of a JSON file."""

    def save(self, data: Any) -> None:
        """Write beside the file, and give it its name at the end; not what is there already."""
        if data is None or read_json(Path(self._filepath)) != data:
            super().save(data)

    def _exists(self) -> bool:
        return read_json(Path(self._filepath)) is not None


class JSONDataset(WholeJSON, kedro_json.JSONDataset):
    """A JSON file."""


class PlotlyDataset(WholeJSON, plotly.JSONDataset):
    """A figure of plotly's as a JSON file."""


class CSVDataset(Whole, pandas.CSVDataset):
    """A CSV file; its last line has an end."""

    end = b"\n"


class TextDataset(Whole, text.TextDataset):
    """A text file; it is not empty."""


class MatplotlibDataset(Whole, AbstractDataset[Any, NoReturn]):
    """A picture as a PNG file; it has its last chunk.

    Kedro's own, which does the work, loads pyplot, and the start of every run would wait for it.

    Args:
        filepath: The path.
        save_args: For matplotlib's ``savefig``.
        metadata: For other tools, such as Kedro-Viz; not used.
    """

    end = b"IEND\xaeB`\x82"

    def __init__(
        self,
        *,
        filepath: str,
        save_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._filepath = PurePosixPath(filepath)
        self._save_args = save_args
        self.metadata = metadata

    def load(self) -> NoReturn:
        """Refuse: a picture is an output."""
        raise DatasetError("Loading not supported for 'MatplotlibDataset'")

    def save(self, data: Any) -> None:
        """Write beside the file, and give it its name at the end."""
        with atomic_write(Path(self._filepath)) as partial:
            self._kedros(partial).save(data)

    def preview(self) -> ImagePreview:
        """Show the picture."""
        return self._kedros(self._filepath).preview()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "save_args": self._save_args}

    def _kedros(self, path: PurePath) -> Any:
        from kedro_datasets import matplotlib

        return matplotlib.MatplotlibDataset(filepath=str(path), save_args=self._save_args)
