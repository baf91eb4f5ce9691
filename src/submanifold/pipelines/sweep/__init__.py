"""What the runs of a sweep have in common: bits per dimension against squared error."""

from submanifold.pipelines.sweep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
