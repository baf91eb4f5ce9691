"""Inverse problems: restoration with a trained model as the prior, and counterfactuals."""

from submanifold.inverse.counterfactual import Counterfactual, counterfactual
from submanifold.inverse.operators import (
    Deblur,
    Denoise,
    Inpaint,
    Operator,
    Sense,
    Superresolve,
    Task,
    parse,
    standard_tasks,
)
from submanifold.inverse.restoration import Restoration, restore

__all__ = [
    "Counterfactual",
    "Deblur",
    "Denoise",
    "Inpaint",
    "Operator",
    "Restoration",
    "Sense",
    "Superresolve",
    "Task",
    "counterfactual",
    "parse",
    "restore",
    "standard_tasks",
]
