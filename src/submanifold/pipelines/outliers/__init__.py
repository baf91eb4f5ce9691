"""Outliers: scores of a trained model on test images and on others."""

from submanifold.pipelines.outliers.pipeline import create_pipeline

__all__ = ["create_pipeline"]
