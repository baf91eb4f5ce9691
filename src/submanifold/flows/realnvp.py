"""RealNVP (Dinh et al. 2017) on vectors."""

from pydantic import PositiveInt
from torch import nn

from submanifold.flows.bijection import Bijection, Compose, Flow
from submanifold.flows.coupling import MaskedAffineCoupling, starting_at_zero
from submanifold.flows.linear import Linear


class RealNVP(Compose, Flow):
    """Masked affine couplings on vectors, whose masks take turns over even and odd coordinates.

    It starts as the identity, or with ``mixing``, which is for few coordinates on any scale, as a
    rotation. With dim 1 it is a learned scale and shift.

    Args:
        dim: Number of coordinates.
        couplings: Number of couplings, each with its own mask (six in the paper).
        hidden: Width of a coupling net's two hidden layers; 2 dim when None, as in the paper.
        mixing: Whether a :class:`Linear` stands before each coupling.

    Example:
        >>> flow = RealNVP(8)
        >>> z, log_det = flow(torch.randn(3, 8))
        >>> z.shape, log_det  # a fresh one is the identity
        (torch.Size([3, 8]), tensor([0., 0., 0.], grad_fn=<AddBackward0>))
    """

    axes = (1,)

    def __init__(
        self,
        dim: int,
        couplings: PositiveInt = 6,
        hidden: PositiveInt | None = None,
        mixing: bool = False,
    ):
        width = hidden or 2 * dim
        layers: list[Bijection] = []
        for index in range(couplings):
            layers += [Linear(dim)] if mixing else []
            net = starting_at_zero(
                nn.Linear(dim, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, 2 * dim),
            )
            mask = [(coordinate + index) % 2 == 1 for coordinate in range(dim)]
            layers.append(MaskedAffineCoupling(mask, net))
        super().__init__(layers)
        self.event_shape = (dim,)
        self.config = {"dim": dim, "couplings": couplings, "hidden": hidden, "mixing": mixing}
