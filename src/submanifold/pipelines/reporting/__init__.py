"""Metrics table, figures, and an HTML report of a model."""

from submanifold.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
