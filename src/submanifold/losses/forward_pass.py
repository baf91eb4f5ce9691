"""The forward pass of a training batch, whose results the terms of a loss share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from submanifold.common.distributed import WHOLE_BATCH, Shard
from submanifold.flows.orthogonal import tail_sums
from submanifold.geometry.linearization import jacobian, select
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.mixture import ChartEncoding, Mixture
from submanifold.models.model import Model

LEAST_RESPONSIBILITY = 1e-3
LARGEST_WEIGHT = 10.0
"""Largest weight of an event in :func:`nested_projection`."""


@dataclass
class ForwardPass:
    """A batch and what the model computes from it, each part once and on first use.

    Attributes:
        model: The stages in training.
        clean: Their input h, (batch, *event_shape): the image, or u of the stages before.
        noisy: h with the input noise; the density is evaluated here.
        outer: The frozen stages before ``model``, if any.
        generator: Source of random numbers, on the device of ``clean``.
        shard: Part of the training batch that ``clean`` is.
        training: Whether gradients are needed; terms may skip work in validation.
        noise_scale: The scale that a noise-conditional model receives, (batch,) in [0, 1].
        outer_context: Context of each event for ``outer``.
        context: The same for ``model``, with the noise scale of a noise-conditional one.
    """

    model: Model
    clean: Tensor
    noisy: Tensor
    outer: Hierarchy | None = None
    generator: torch.Generator | None = None
    shard: Shard = WHOLE_BATCH
    training: bool = True
    noise_scale: Tensor | None = None
    outer_context: Tensor | None = None
    context: Tensor | None = None
    _residuals: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False)

    def draw(
        self, sample: Callable[..., Tensor], *shape: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Draw random numbers (batch, *shape) by ``torch.rand`` or ``torch.randn``.

        The numbers of the full training batch are drawn and the rows of this shard returned, so
        that results do not depend on the number of shards.
        """
        count = self.shard.count * len(self.clean)
        options = {"generator": self.generator, "dtype": dtype, "device": self.clean.device}
        return self.shard.rows(sample(count, *shape, **options))

    @cached_property
    def _trace(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        if isinstance(self.model, Hierarchy):
            return self.model.trace(
                self.noisy,
                lambda h: self.draw(torch.randn, *h.shape[1:], dtype=h.dtype),
                self.context,
            )
        if self._charted is not None:
            u, v, log_prob = self.model.select_chart(self._charted)  # type: ignore[operator]
        else:
            u, v, log_prob = self.model(self.noisy, self.context)
        return [u], [v], log_prob

    @cached_property
    def _charted(self) -> ChartEncoding | None:
        if not isinstance(self.model, Mixture):
            return None
        return self.model.encode_on_charts(self.noisy, self.context)

    @property
    def u(self) -> Tensor:
        """Coordinates on the innermost manifold, (batch, d)."""
        return self._trace[0][-1]

    @property
    def v(self) -> Tensor:
        """Off-manifold coordinates of all stages, (batch, D - d)."""
        return torch.cat(self._trace[1], 1)

    @property
    def log_prob(self) -> Tensor:
        """Log-density of the noisy h in nats, (batch,)."""
        return self._trace[2]

    def decode(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        """Decode u (batch, d) through the model and the outer stages.

        With ``rows``, u are coordinates of the events with these numbers, instead of all.
        """
        h = select(self.model.decode, self.context, rows)(u)
        return h if self.outer is None else select(self.outer.decode, self.outer_context, rows)(h)

    def jacobian(self, directions: Tensor | None = None) -> Tensor:
        """Compute the :func:`~.linearization.jacobian` of :meth:`decode` at u."""
        rows = torch.arange(len(self.u), device=self.u.device)
        return jacobian(lambda u, context: self.decode(u, context), self.u, directions, None, rows)

    def residual(self, last_stage: int | None = None, space: str = "latent") -> Tensor:
        """Residual of the projection, (batch, ...); see :class:`.Squared` for the arguments.

        In the space ``metric`` it is the latent residual times the roots of the outer rotation's
        eigenvalues, scaled to the mean square of the image's residual.
        """
        if self.outer is None:
            space = "latent"  # h is the image
        key = last_stage, space
        if key not in self._residuals:
            u = self._trace[0][:last_stage][-1]
            projection = self._stages(last_stage)._decode(u, None, self.context)
            self._residuals[key] = self._residual(projection, space)
        return self._residuals[key]

    def weighted_residuals(
        self,
        last_stage: int | None = None,
        space: str = "latent",
        random_dim: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Residuals that a penalty is computed from, and the weight of each; None if all are equal.

        A mixture has the residuals of all charts, (K batch, ...), weighted by responsibilities of
        at least :data:`LEAST_RESPONSIBILITY`. With ``random_dim`` each event is projected onto a
        manifold of a random dimension (:func:`nested_projection`).
        """
        if self._charted is None and random_dim is None:
            return self.residual(last_stage, space), None
        key = last_stage, space, random_dim
        if key not in self._residuals:
            if self._charted is not None:
                self._residuals[key] = self._chart_residuals(self._charted)
            elif random_dim is not None:
                u, v = (coordinates[:last_stage][-1] for coordinates in self._trace[:2])
                stages: Any = self._stages(last_stage)
                drawn = self.draw(torch.rand)
                projection, weight = nested_projection(
                    stages, u, v, random_dim, drawn, self.context
                )
                self._residuals[key] = self._residual(projection, space), weight
        return self._residuals[key]

    def _chart_residuals(self, charted: ChartEncoding) -> tuple[Tensor, Tensor]:
        # detached: the penalty moves the charts but not their responsibilities
        weights = charted.responsibilities.detach()
        # a chart can overflow at events of other charts, and 0 * inf is not finite
        near = weights > LEAST_RESPONSIBILITY
        u = torch.where(near[:, :, None], charted.u, 0.0)
        charts: Any = self.model.charts
        pairs = zip(charts, u, strict=True)
        decoded = [chart.decode(at, context=self.context) for chart, at in pairs]
        residuals = self.clean - torch.stack(decoded)
        near = near.view(*near.shape, *[1] * (residuals.dim() - 2))
        return torch.where(near, residuals, 0.0).flatten(0, 1), len(u) * weights.flatten()

    def _stages(self, last: int | None) -> Model:
        return Hierarchy(self.model.stages[:last]) if last else self.model  # type: ignore

    def _residual(self, projection: Tensor, space: str) -> Tensor:
        target = self.clean
        if self.outer is not None and space == "image":
            with torch.no_grad():
                target = self.outer.decode(target, context=self.outer_context)
            projection = self.outer.decode(projection, context=self.outer_context)
        if self.outer is not None and space == "metric":
            eigenvalues = self.outer.eigenvalues
            if eigenvalues is None:
                raise ValueError("space=metric: expected outer stages with a rotation, got none.")
            root = (eigenvalues * len(eigenvalues) / self.outer.event_dim).sqrt()
            return root * (target - projection)
        return target - projection


def nested_projection(
    model: Hierarchy,
    u: Tensor,
    v: Tensor,
    random_dim: float,
    uniform: Tensor,
    context: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Project each event onto a manifold of a random dimension, drawn log-uniformly.

    This is nested dropout (Rippel et al. 2014; for flows: Bekasov & Murray 2020): the projection
    keeps as many leading latents of the last stage.

    Args:
        model: The stages that project; the last one has d dimensions.
        u: Coordinates on its manifold, (batch, d).
        v: Off-manifold coordinates of its last stage, (batch, latent_dim - d).
        random_dim: Dimensions range from d / random_dim to d * random_dim, or to the number of axes
            that the rotation has chosen, if that is less.
        uniform: Random numbers in [0, 1), (batch,), which choose the dimensions.
        context: See :class:`.Model`.

    Returns:
        The projections, (batch, *event_shape), and weights (batch,): the first-order error at d
        (at most one less than the number of latents) divided by the one at the drawn dimension, at
        most :data:`LARGEST_WEIGHT`; 1 without a rotation.
    """
    *outside, last = model.stages
    low = max(1, round(last.dim / random_dim))
    ordered = last.latent_dim if last.rotation is None else last.rotation.directions
    high = min(ordered, round(last.dim * random_dim))
    dims = (low * (high / low) ** uniform).round().long()
    z = torch.cat([u, v], 1)[:, :high]
    z = z * (torch.arange(high, device=u.device) < dims[:, None])
    if high > last.dim:
        z = F.pad(z, (0, last.latent_dim - high))
        projection = last.decode(z[:, : last.dim], z[:, last.dim :], context)
    else:
        projection = last.decode(F.pad(z, (0, last.dim - high)), context=context)
    for stage in reversed(outside):
        projection = stage.decode(projection, context=context)
    weight = torch.ones_like(uniform)
    if last.rotation is not None:
        tail = tail_sums(last.rotation.eigenvalues)
        error = tail[min(last.dim, last.latent_dim - 1)]  # with all latents there is none
        weight = error / tail[dims].clamp_min(error / LARGEST_WEIGHT)
    return projection, weight
