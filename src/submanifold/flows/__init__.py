"""Bijections with tractable Jacobian determinants, as plain torch modules."""

from submanifold.flows.actnorm import ActNorm, initialize
from submanifold.flows.bijection import Bijection, Compose, Flow
from submanifold.flows.coupling import (
    AffineCoupling,
    Coupling,
    MaskedAffineCoupling,
    set_recompute,
)
from submanifold.flows.glow import Glow
from submanifold.flows.linear import Affine, Linear
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.reshape import Split, Squeeze

FLOWS: dict[str, type[Flow]] = {"glow": Glow, "realnvp": RealNVP, "affine": Affine}

__all__ = [
    "FLOWS",
    "ActNorm",
    "Affine",
    "AffineCoupling",
    "Bijection",
    "Compose",
    "Coupling",
    "Flow",
    "Glow",
    "Linear",
    "MaskedAffineCoupling",
    "RealNVP",
    "Split",
    "Squeeze",
    "initialize",
    "set_recompute",
]
