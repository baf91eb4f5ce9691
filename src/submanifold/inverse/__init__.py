"""Inverse problems: restore images with a trained model as the prior."""

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
    "Deblur",
    "Denoise",
    "Inpaint",
    "Operator",
    "Restoration",
    "Sense",
    "Superresolve",
    "Task",
    "parse",
    "restore",
    "standard_tasks",
]
