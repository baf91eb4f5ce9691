"""Kedro datasets of this project: arrays, models, paths to work at, and files that are whole."""

from submanifold.runs.datasets.array import ArrayDataset, PreparedDataset
from submanifold.runs.datasets.atomic import (
    CSVDataset,
    JSONDataset,
    MatplotlibDataset,
    PlotlyDataset,
    TextDataset,
)
from submanifold.runs.datasets.model import ModelDataset
from submanifold.runs.datasets.path import PathDataset

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
