"""All stages trained at once: PR-D, PR-M, PR-H, EE-M, EE-H."""

from submanifold.pipelines.joint.pipeline import create_pipeline

__all__ = ["create_pipeline"]
