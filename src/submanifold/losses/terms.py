"""Terms of a loss: the base class, and the terms of densities and of coordinates."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from submanifold.common.settings import Settings
from submanifold.losses.encoding import Encoding


class Term(Settings, ABC):
    """One term of a loss: its settings, and its value for an encoding.

    To add a term, define a subclass and register it as a field of :class:`.Loss`.

    Attributes:
        weight: Factor of the term; 0 omits it.
    """

    weight: float = Field(default=0.0, ge=0)

    @abstractmethod
    def __call__(self, encoding: Encoding) -> Tensor:
        """Value before the weight, a mean over the encoding."""


class Likelihood(Term):
    r"""Negative log-density :math:`-\log p(h)` (:ref:`theory-3-5`).

    With injective stages it is the density on the manifold, in bits per dimension of the manifold.

    Attributes:
        weight: Factor c of the term; 0.5 in the first phase of the starred methods.
        unit: ``bits_per_dim``, or ``nats`` per event.
        trim: Fraction of the events of a batch that the mean leaves out, those of the lowest
            density: for training data with anomalies, whose number this fraction should exceed. In
            a noise-conditional flow they are the lowest for their noise scale, compared with a
            quadratic fit of the log-density to the logarithm of the scale. Batches must not be in
            parts.
    """

    weight: float = Field(default=1.0, ge=0)
    unit: Literal["bits_per_dim", "nats"] = "bits_per_dim"
    trim: float = Field(default=0.0, ge=0, lt=0.5)

    def __call__(self, encoding: Encoding) -> Tensor:
        log_prob = encoding.log_prob
        if self.trim:
            kept = len(log_prob) - int(self.trim * len(log_prob))
            residuals = _residuals(log_prob.detach(), encoding.noise_scale)
            log_prob = log_prob[residuals.topk(kept).indices]
        if self.unit == "nats":
            return -log_prob.mean()
        return encoding.model.to_bits_per_dim(log_prob).mean()


class OffManifold(Term):
    """Mean square of the off-manifold coordinates, as in DNF's code (:ref:`theory-3-10`)."""

    def __call__(self, encoding: Encoding) -> Tensor:
        return encoding.v.square().mean()


def _residuals(values: Tensor, scale: Tensor | None) -> Tensor:
    """Subtract a quadratic least-squares fit to the scale, all (batch,), from values.

    Values that are not finite do not determine the fit, and are the lowest.
    """
    is_finite = values.isfinite()
    y = values.where(is_finite, 0.0).double()
    if scale is not None:
        powers = torch.stack([torch.ones_like(scale), scale, scale.square()], 1).double()
        fitted = powers * is_finite[:, None]
        # the normal equations need no least-squares driver of the device
        gram = fitted.T @ fitted + 1e-6 * torch.eye(3, dtype=y.dtype, device=y.device)
        y = y - powers @ torch.linalg.solve(gram, fitted.T @ y)
    return y.where(is_finite, -torch.inf)
