"""Table and plot of a sweep."""

from submanifold.pipelines.sweep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
