"""RealNVP (Dinh et al. 2017) on vectors."""

import torch
from torch import nn

from submanifold.flows.bijection import Bijection, Compose, Flow
from submanifold.flows.coupling import MaskedAffineCoupling
from submanifold.flows.linear import Linear


class RealNVP(Compose, Flow):
    """Masked affine couplings on vectors, whose masks take turns over even and odd coordinates.

    It starts as the identity, so a fresh stage leaves the density as it was. One coordinate alone
    has nothing to be conditioned on: with dim 1 the flow is a learned scale and shift.

    With ``mixing`` each coupling is a step of Glow: what it gets is normalised and mixed by an
    invertible matrix first. That is for few coordinates on any scale; it starts as a rotation.

    Args:
        dim: Number of coordinates.
        couplings: Number of couplings, each with its own mask (six in the paper).
        hidden: Width of a coupling net's two hidden layers; 2 dim when None, as in the paper.
        mixing: Whether a :class:`Linear` stands before each coupling.
    """

    def __init__(
        self, dim: int, couplings: int = 6, hidden: int | None = None, mixing: bool = False
    ):
        parity = torch.arange(dim) % 2
        layers: list[Bijection] = []
        for index in range(couplings):
            mask = ((parity + index) % 2).float()
            layers += [Linear(dim)] if mixing else []
            layers.append(MaskedAffineCoupling(mask, _net(dim, hidden or 2 * dim)))
        super().__init__(layers)
        self.event_shape = (dim,)
        self.config = {"dim": dim, "couplings": couplings, "hidden": hidden, "mixing": mixing}


def _net(dim: int, hidden: int) -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 2 * dim),
    )
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]
    return net
