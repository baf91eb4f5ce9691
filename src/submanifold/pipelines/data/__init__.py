"""Source -> arrays on disk."""

from submanifold.pipelines.data.pipeline import create_pipeline

__all__ = ["create_pipeline"]
