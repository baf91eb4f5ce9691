"""Kedro's datasets of one file, written whole or not at all, and there only when they are whole."""

from pathlib import Path, PurePosixPath
from typing import Any

from kedro_datasets import json as kedro_json
from kedro_datasets import matplotlib, pandas, plotly, text

from submanifold.files import read_json, whole


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
        with whole(Path(self._filepath)) as partial:
            twin = self._copy(_filepath=PurePosixPath(partial))  # type: ignore[attr-defined]
            super(Whole, twin).save(data)  # type: ignore[misc]

    def _exists(self) -> bool:
        path = Path(self._filepath)
        content = path.read_bytes() if path.is_file() else b""
        return content != b"" and content.endswith(self.end)


class WholeJSON(Whole):
    """A dataset of a JSON file."""

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


class MatplotlibDataset(Whole, matplotlib.MatplotlibDataset):
    """A picture as a PNG file; it has its last chunk."""

    end = b"IEND\xaeB`\x82"
