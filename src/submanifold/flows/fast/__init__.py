"""Glow's affine couplings on CPUs, faster than torch's modules (docs/evidence/performance.md)."""

from submanifold.flows.fast.coupling import (
    affine_coupling,
    flow_steps,
    is_hooked,
    supports,
    supports_steps,
)

__all__ = ["affine_coupling", "flow_steps", "is_hooked", "supports", "supports_steps"]
