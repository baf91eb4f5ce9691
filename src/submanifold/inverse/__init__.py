"""Inverse problems: restoration with a trained model as the prior."""

from submanifold.inverse.operators import Deblur, Denoise, Inpaint, Sense, Superresolve, Task, parse
from submanifold.inverse.restoration import Restoration, restore

__all__ = [
    "Deblur",
    "Denoise",
    "Inpaint",
    "Restoration",
    "Sense",
    "Superresolve",
    "Task",
    "parse",
    "restore",
]
