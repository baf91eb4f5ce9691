"""Train a model phase by phase."""

from submanifold.pipelines.training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
