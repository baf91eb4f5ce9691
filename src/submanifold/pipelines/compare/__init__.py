"""Table and samples of the finished runs of a data set."""

from submanifold.pipelines.compare.pipeline import create_pipeline

__all__ = ["create_pipeline"]
