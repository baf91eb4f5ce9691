"""Trained model and test data -> metrics, samples, projections."""

from submanifold.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
