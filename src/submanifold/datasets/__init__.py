"""Kedro datasets of this project: arrays, models, paths to work at, and files that are whole."""

from submanifold.datasets.array import ArrayDataset, PreparedDataset
from submanifold.datasets.model import ModelDataset
from submanifold.datasets.path import PathDataset
from submanifold.datasets.whole import (
    CSVDataset,
    JSONDataset,
    MatplotlibDataset,
    PlotlyDataset,
    TextDataset,
)

__all__ = [
    "ArrayDataset",
    "CSVDataset",
    "JSONDataset",
    "MatplotlibDataset",
    "ModelDataset",
    "PathDataset",
    "PlotlyDataset",
    "PreparedDataset",
    "TextDataset",
]
