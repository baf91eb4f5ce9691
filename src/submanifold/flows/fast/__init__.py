"""Couplings computed another way than by plain modules, and faster (docs/performance.md)."""

from submanifold.flows.fast.coupling import applies, couple

__all__ = ["applies", "couple"]
