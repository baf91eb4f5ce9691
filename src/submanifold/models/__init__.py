"""Models: a manifold and an exact density, composed of stages of flows."""

from submanifold.models.classifier import classify
from submanifold.models.cross_fitted import CrossFitted
from submanifold.models.defensive import (
    DefensiveComponent,
    NormalComponents,
    UniformComponent,
)
from submanifold.models.density import manifold_density
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.mixture import Mixture
from submanifold.models.model import Model
from submanifold.models.neighbors import Neighbors
from submanifold.models.settings import ModelSettings, StageSettings
from submanifold.models.stage import Stage

__all__ = [
    "CrossFitted",
    "DefensiveComponent",
    "Hierarchy",
    "Mixture",
    "Model",
    "ModelSettings",
    "Neighbors",
    "NormalComponents",
    "Stage",
    "StageSettings",
    "UniformComponent",
    "classify",
    "manifold_density",
]
