"""Penalty on off-manifold coordinates."""

from torch import Tensor

from submanifold.losses.forward_pass import ForwardPass
from submanifold.losses.terms.term import Term


class OffManifold(Term):
    """Mean square of the off-manifold coordinates, as in DNF's code (:ref:`theory-3-10`)."""

    def __call__(self, batch: ForwardPass) -> Tensor:
        return batch.v.square().mean()
