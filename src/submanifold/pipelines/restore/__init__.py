"""Inverse problems: restorations of test images by the model and by other methods."""

from submanifold.pipelines.restore.pipeline import create_pipeline

__all__ = ["create_pipeline"]
