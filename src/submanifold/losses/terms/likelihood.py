"""Negative log-likelihood."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from submanifold.losses.forward_pass import ForwardPass
from submanifold.losses.terms.term import Term


class Likelihood(Term):
    r"""Negative log-density :math:`-\log p(h)` (:ref:`theory-3-5`).

    With injective stages it is the density on the manifold, in bits per dimension of the manifold.

    Attributes:
        weight: Factor c of the term; 0.5 in the first phase of the starred methods.
        unit: ``bits_per_dim``, or ``nats`` per event.
    """

    weight: float = Field(default=1.0, ge=0)
    unit: Literal["bits_per_dim", "nats"] = "bits_per_dim"

    def __call__(self, batch: ForwardPass) -> Tensor:
        """Mean over the batch."""
        if self.unit == "nats":
            return -batch.log_prob.mean()
        return batch.model.to_bits_per_dim(batch.log_prob).mean()
