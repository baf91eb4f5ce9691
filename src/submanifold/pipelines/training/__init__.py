"""A model trained phase by phase, from the source to the report."""

from submanifold.pipelines.training.pipeline import create_pipeline, create_training

__all__ = ["create_pipeline", "create_training"]
