"""ood: scores of a trained model on test images and on others."""

from submanifold.pipelines.ood.pipeline import create_pipeline

__all__ = ["create_pipeline"]
