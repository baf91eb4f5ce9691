"""Out-of-distribution detection: a trained model's scores of test images and of other images."""

from submanifold.pipelines.ood.pipeline import create_pipeline

__all__ = ["create_pipeline"]
