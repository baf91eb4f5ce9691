"""Manifolds and densities from bijections: stages, hierarchies, and what they are trained with."""

from submanifold.manifold.density import manifold_log_prob
from submanifold.manifold.hierarchy import Hierarchy
from submanifold.manifold.methods import StageSettings, build_hierarchy
from submanifold.manifold.objective import Objective, pixel_penalty
from submanifold.manifold.pca import PCA
from submanifold.manifold.stage import Stage

__all__ = [
    "PCA",
    "Hierarchy",
    "Objective",
    "Stage",
    "StageSettings",
    "build_hierarchy",
    "manifold_log_prob",
    "pixel_penalty",
]
