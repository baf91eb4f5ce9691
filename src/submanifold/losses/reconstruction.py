"""Penalty on the error of the projection."""

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.flows.orthogonal import tail_sums
from submanifold.losses.encoding import Encoding
from submanifold.losses.terms import Term
from submanifold.models.hierarchy import Hierarchy

LEAST_RESPONSIBILITY = 1e-3
LARGEST_WEIGHT = 10.0  #: Of an event that is projected onto a manifold of random dimension.
LARGEST_RATIO = 1e4  #: Of the variance to an error that a relative error is divided by.

Residuals = tuple[Tensor, Tensor | None]
"""Differences (batch, ...), and the weight of each event, (batch,); None if all are equal."""


class Reconstruction(Term):
    r"""Penalty on :math:`h_i - \tilde h_i`, :math:`\tilde h = f^{-1}(u, 0)`, a mean over i (Eq. 4).

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

    def __call__(self, encoding: Encoding, known: Residuals | None = None) -> Tensor:
        """Mean over the batch and its coordinates; ``known`` are the :meth:`residuals`, if any."""
        residuals, weights = known or self.residuals(encoding)
        return weighted_mean(self.elementwise(self.pixel_range * residuals), weights)

    def elementwise(self, residual: Tensor) -> Tensor:
        """Penalty of each coordinate of a residual."""
        if self.penalty == "mse":
            return residual.square()
        zeros = torch.zeros_like(residual)
        return F.huber_loss(residual, zeros, reduction="none", delta=self.delta)

    def residuals(self, encoding: Encoding) -> Residuals:
        """Residuals of the projection, (batch, ...), and their weights.

        A mixture has those of all charts, (K batch, ...), weighted by responsibilities of at least
        :data:`LEAST_RESPONSIBILITY`. In the space ``metric`` they are the latent residuals times
        the roots of the outer rotation's eigenvalues, scaled to the mean square of the image's.
        """
        if encoding.charts is not None:
            return _of_charts(encoding)
        model, outer, target, weights = encoding.model, encoding.outer, encoding.h, None
        stages = Hierarchy(model.stages[: self.last_stage]) if self.last_stage else model
        if self.random_dim is None:
            u = encoding.us[len(stages.stages) - 1]
            projection = stages.decode(u, context=encoding.decoder_context)
        else:
            projection, weights = _nested_projection(encoding, stages, self.random_dim, outer)
        if outer is not None and self.space == "image":
            with torch.no_grad():
                target = outer.decode(target, context=encoding.context)
            projection = outer.decode(projection, context=encoding.context)
        residuals = target - projection
        if outer is not None and self.space == "metric":
            eigenvalues: Any = outer.eigenvalues
            residuals = (eigenvalues * len(eigenvalues) / outer.event_dim).sqrt() * residuals
        return residuals, weights


def _of_charts(encoding: Encoding) -> Residuals:
    charts: Any = encoding.charts
    # detached: the penalty moves the charts but not their responsibilities
    weights = charts.joint.softmax(0).detach()
    # a chart can overflow at events of other charts, and 0 * inf is not finite
    near = weights > LEAST_RESPONSIBILITY
    u = torch.where(near[:, :, None], charts.u, 0.0)
    pairs = zip(encoding.model.charts, u, strict=True)
    decoded = [chart.decode(at, context=encoding.decoder_context) for chart, at in pairs]
    residuals = encoding.h - torch.stack(decoded)
    near = near.view(*near.shape, *[1] * (residuals.dim() - 2))
    return torch.where(near, residuals, 0.0).flatten(0, 1), len(u) * weights.flatten()


def _nested_projection(
    encoding: Encoding, model: Any, random_dim: float, outer: Hierarchy | None
) -> tuple[Tensor, Tensor]:
    """Project each event onto a manifold of a random dimension, drawn log-uniformly.

    This is nested dropout (Rippel et al. 2014; for flows: Bekasov & Murray 2020): the projection
    keeps as many leading latents of the last stage. Dimensions are d / random_dim to
    d * random_dim, or to the number of axes that the rotation has chosen, if that is less. The
    weight of an event is the first-order error at d (at most one less than the number of latents)
    divided by that at its dimension, at most :data:`LARGEST_WEIGHT`. Behind a rotation of the outer
    stages it is the inverse of their first-order error, so that the penalty is a relative error.
    Without any rotation it is 1.
    """
    (*outside, last), context = model.stages, encoding.decoder_context
    low = max(1, round(last.dim / random_dim))
    ordered = last.latent_dim if last.rotation is None else last.rotation.directions
    high = min(ordered, round(last.dim * random_dim))
    uniform = encoding.draw(torch.rand)
    dims = (low * (high / low) ** uniform).round().long()
    z = torch.cat([encoding.us[len(outside)], encoding.vs[len(outside)]], 1)[:, :high]
    z = z * (torch.arange(high, device=z.device) < dims[:, None])
    if high > last.dim:
        projection = last.inverse(F.pad(z, (0, last.latent_dim - high)), context)
    else:
        projection = last.decode(F.pad(z, (0, last.dim - high)), context=context)
    for stage in reversed(outside):
        projection = stage.decode(projection, context=context)
    weight = torch.ones_like(uniform)
    if last.rotation is not None:
        tail = tail_sums(last.rotation.eigenvalues)
        error = tail[min(last.dim, last.latent_dim - 1)]  # with all latents there is none
        weight = error / tail[dims].clamp_min(error / LARGEST_WEIGHT)
    elif outer is not None and (before := outer.stages[-1].rotation) is not None:
        tail = tail_sums(before.eigenvalues)
        weight = outer.event_dim / tail[dims].clamp_min(tail[0] / LARGEST_RATIO)
    return projection, weight


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over all coordinates of events (batch, ...), with a weight for each event (batch,)."""
    return values.mean() if weights is None else (weights * values.flatten(1).mean(1)).mean()
