"""RealNVP (Dinh et al. 2017) on vectors, also with splines in its couplings."""

import numpy as np
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from submanifold.flows.bijection import Bijection, Compose, Flow
from submanifold.flows.coupling import MaskedAffineCoupling, MaskedSplineCoupling, mlp
from submanifold.flows.linear import Linear


class RealNVP(Compose, Flow):
    """Masked couplings of vectors, which transform even and odd coordinates in turn.

    It starts as the identity, or as a rotation with ``mixing``.

    Args:
        dim: Number of coordinates. With dim 1 and no bins the flow is a learned scale and shift.
        couplings: Number of couplings (six in the paper).
        hidden: Width of the two hidden layers of a coupling net; None is twice ``dim``, as in the
            paper.
        mixing: Whether a :class:`Linear` map precedes each coupling: for few coordinates of
            different scales.
        bins: Bins of the splines that replace the affine maps of couplings (Durkan et al. 2019); 0
            keeps them. They fit manifolds better that one chart cannot cover, such as a circle.

    Example:
        >>> flow = RealNVP(8)
        >>> z, log_det = flow(torch.randn(3, 8))
        >>> z.shape, log_det  # the identity before training
        (torch.Size([3, 8]), tensor([0., 0., 0.], grad_fn=<AddBackward0>))
    """

    axes = (1,)

    def __init__(
        self,
        dim: int,
        couplings: PositiveInt = 6,
        hidden: PositiveInt | None = None,
        mixing: bool = False,
        bins: NonNegativeInt = 0,
    ):
        layers: list[Bijection] = []
        for index in range(couplings):
            layers += [Linear(dim)] if mixing else []
            mask, width = (np.arange(dim) + index) % 2 == 1, hidden or 2 * dim
            if bins:
                net = mlp(dim, width, (3 * bins + 3) * dim, nn.SiLU)
                layers.append(MaskedSplineCoupling(mask, net, bins))
            else:
                net = mlp(dim, width, 2 * dim, nn.ReLU)
                layers.append(MaskedAffineCoupling(mask, net))
        super().__init__(layers)
        self.event_shape = (dim,)
