"""What the trials of a study have in common: their table, their front, and a page of both."""

from submanifold.pipelines.study.pipeline import create_pipeline

__all__ = ["create_pipeline"]
