"""Choice of the dimension: error by dimension and estimates of the intrinsic dimension."""

from submanifold.pipelines.dimension.pipeline import create_pipeline

__all__ = ["create_pipeline"]
