"""Glow's affine couplings on CPUs, faster than torch's modules (docs/evidence/performance.md)."""

from submanifold.flows.fast.coupling import flow_steps, is_hooked, supports

__all__ = ["flow_steps", "is_hooked", "supports"]
