"""Metrics, histories, samples and projections -> pictures, table and one HTML page."""

from submanifold.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
