"""Table, plot and page of an Optuna study."""

from submanifold.pipelines.study.pipeline import create_pipeline

__all__ = ["create_pipeline"]
