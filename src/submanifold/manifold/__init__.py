"""Manifolds and densities from bijections: models, and what they are trained with."""

from submanifold.manifold.hierarchy import Hierarchy
from submanifold.manifold.mixture import Mixture
from submanifold.manifold.model import Model
from submanifold.manifold.objective import Objective, penalized_likelihood
from submanifold.manifold.settings import ModelSettings, StageSettings
from submanifold.manifold.slice import Slice
from submanifold.manifold.stage import Stage
from submanifold.manifold.volume import manifold_log_prob, on_manifold

__all__ = [
    "Hierarchy",
    "Mixture",
    "Model",
    "ModelSettings",
    "Objective",
    "Slice",
    "Stage",
    "StageSettings",
    "manifold_log_prob",
    "on_manifold",
    "penalized_likelihood",
]
