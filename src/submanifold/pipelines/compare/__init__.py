"""The finished runs in MLflow -> one sortable table, and their samples side by side."""

from submanifold.pipelines.compare.pipeline import create_pipeline

__all__ = ["create_pipeline"]
