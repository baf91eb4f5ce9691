"""Kedro datasets: arrays, models, paths, and Kedro's file datasets with atomic writes."""

from submanifold.runs.datasets.atomic import (
    CSVDataset,
    JSONDataset,
    MatplotlibDataset,
    PlotlyDataset,
    TextDataset,
)
from submanifold.runs.datasets.local import (
    ArrayDataset,
    ModelDataset,
    PathDataset,
    PreparedDataset,
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
