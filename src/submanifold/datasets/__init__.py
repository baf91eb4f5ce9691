"""Kedro datasets of this project: arrays, flows, and folders that a node works in."""

from submanifold.datasets.array import ArrayDataset
from submanifold.datasets.flow import FlowDataset
from submanifold.datasets.folder import FolderDataset

__all__ = ["ArrayDataset", "FlowDataset", "FolderDataset"]
