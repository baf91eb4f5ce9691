"""Learn the sub-manifold that data lives on, and an exact density on it, with flows."""

from submanifold.manifold import Hierarchy, Stage

__all__ = ["Hierarchy", "Stage"]
