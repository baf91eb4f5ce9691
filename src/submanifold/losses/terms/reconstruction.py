"""Penalty on the error of the projection."""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.losses.forward_pass import ForwardPass
from submanifold.losses.terms.term import Term


class Reconstruction(Term):
    r"""Penalty on :math:`h_i - \tilde h_i`, :math:`\tilde h = f^{-1}(u, 0)`, a mean over i.

    Attributes:
        penalty: ``mse``, the square; ``huber``, Huber's function H_delta (Eq. 2), half the square
            up to ``delta``, linear beyond; or ``none``, of weight 0, which omits the projection.
        weight: Factor lambda of the penalty.
        space: What is compared: ``latent`` (the paper), h and its projection; ``image``, the images
            that both decode to (:ref:`theory-3-9`); ``metric``, the same to first order behind a
            rotated stage (:ref:`theory-6-4`). All are equal if h is the image.
        last_stage: Last of the phase's stages that the projection uses, counted from 1; None is
            all.
        pixel_range: Width of the interval of pixel values in the penalty: 1, or 256 for bytes
            (:ref:`theory-3-5`). Reported errors stay on [0, 1].
        random_dim: Each event draws a dimension log-uniformly from d / random_dim to
            d * random_dim, so that one model serves them all; None is the stage's own dimension d.
        delta: Size of a residual up to which Huber's function is quadratic.
    """

    penalty: Literal["mse", "huber", "none"] = "none"
    space: Literal["latent", "image", "metric"] = "latent"
    last_stage: int | None = Field(default=None, gt=0)
    pixel_range: float = Field(default=1.0, gt=0)
    random_dim: float | None = Field(default=None, gt=1)
    delta: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _check_weight(self) -> Self:
        if (self.penalty == "none") != (self.weight == 0):
            expected = "0" if self.penalty == "none" else "a positive number"
            raise unexpected("weight", f"{expected} with penalty={self.penalty}", self.weight)
        return self

    def __call__(self, batch: ForwardPass) -> Tensor:
        """Mean over the batch and its coordinates, weighted if dimensions are random."""
        residuals, weights = batch.residuals(self.last_stage, self.space, self.random_dim)
        return weighted_mean(self.elementwise(self.pixel_range * residuals), weights)

    def elementwise(self, residual: Tensor) -> Tensor:
        """Penalty of each coordinate of a residual."""
        if self.penalty == "mse":
            return residual.square()
        zeros = torch.zeros_like(residual)
        return F.huber_loss(residual, zeros, reduction="none", delta=self.delta)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over all coordinates of events (batch, ...), with a weight for each event (batch,)."""
    return values.mean() if weights is None else (weights * values.flatten(1).mean(1)).mean()
