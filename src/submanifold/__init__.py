"""Learn the sub-manifold that data lives on, and an exact density on it, with flows."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submanifold.evaluation.audit import audit
    from submanifold.inference.predictor import Predictor
    from submanifold.models import Hierarchy, Stage

__all__ = ["Hierarchy", "Predictor", "Stage", "audit"]

_MODULES = {"Predictor": "inference.predictor", "audit": "evaluation.audit"}


def __getattr__(name: str) -> Any:
    """Load torch with the first use of a model: every command of Kedro's imports this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"submanifold.{_MODULES.get(name, 'models')}"), name)
