"""Normalizing flows: bijections with tractable Jacobian determinants, as torch modules."""

from submanifold.flows.autoencoder import Autoencoder
from submanifold.flows.bijection import (
    Bijection,
    Compose,
    DataInitialized,
    Flow,
    Injection,
    initialize,
)
from submanifold.flows.conditional import context_of, make_conditional
from submanifold.flows.conformal import Conformal
from submanifold.flows.context import Context, as_context, with_noise_scale
from submanifold.flows.coupling import (
    AffineCoupling,
    Coupling,
    MaskedAffineCoupling,
    MaskedSplineCoupling,
)
from submanifold.flows.gaussianization import Gaussianization, MixtureOfLogistics
from submanifold.flows.glow import Glow
from submanifold.flows.linear import ActNorm, Affine, Linear
from submanifold.flows.orthogonal import Reflections, Rotation
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.registry import FLOWS, FlowSettings, build_flow, describe_flow
from submanifold.flows.reshape import Split, Squeeze
from submanifold.flows.softflow import SoftGlow, SoftRealNVP, is_noise_conditional
from submanifold.flows.tabular import QuantileSpline, Tabular
from submanifold.flows.trumpet import Trumpet
from submanifold.flows.zuko import Zuko

__all__ = [
    "FLOWS",
    "ActNorm",
    "Affine",
    "AffineCoupling",
    "Autoencoder",
    "Bijection",
    "Compose",
    "Conformal",
    "Context",
    "Coupling",
    "DataInitialized",
    "Flow",
    "FlowSettings",
    "Gaussianization",
    "Glow",
    "Injection",
    "Linear",
    "MaskedAffineCoupling",
    "MaskedSplineCoupling",
    "MixtureOfLogistics",
    "QuantileSpline",
    "RealNVP",
    "Reflections",
    "Rotation",
    "SoftGlow",
    "SoftRealNVP",
    "Split",
    "Squeeze",
    "Tabular",
    "Trumpet",
    "Zuko",
    "as_context",
    "build_flow",
    "context_of",
    "describe_flow",
    "initialize",
    "is_noise_conditional",
    "make_conditional",
    "with_noise_scale",
]
