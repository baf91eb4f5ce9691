"""Couplings computed another way than by plain modules, and faster (docs/performance.md)."""

from submanifold.flows.fast.coupling import applies, applies_to_steps, couple, steps

__all__ = ["applies", "applies_to_steps", "couple", "steps"]
