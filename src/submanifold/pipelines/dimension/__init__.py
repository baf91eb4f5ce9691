"""Choosing d: the error by dimension, and estimates of the intrinsic one."""

from submanifold.pipelines.dimension.pipeline import create_pipeline

__all__ = ["create_pipeline"]
