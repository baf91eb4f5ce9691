"""One stage after the other, each on the manifold that the one before has learned (Alg. 2)."""

from submanifold.pipelines.hierarchical.pipeline import create_pipeline

__all__ = ["create_pipeline"]
