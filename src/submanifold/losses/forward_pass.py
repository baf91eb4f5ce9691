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
from submanifold.flows.softflow import with_noise_scale
from submanifold.geometry.linearization import jacobian, select
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.mixture import ChartEncoding, Mixture

LEAST_RESPONSIBILITY = 1e-3
LARGEST_WEIGHT = 10.0
"""Largest weight of an event that is projected onto a manifold of random dimension."""


@dataclass
class ForwardPass:
    """A batch and what the model computes from it, each part once and on first use."""

    model: Any  #: The stages in training.
    clean: Tensor  #: Their input h, (batch, *event_shape): the image, or u of the stages before.
    noisy: Tensor  #: h with the input noise; the density is evaluated here.
    outer: Hierarchy | None = None  #: The frozen stages before ``model``, if any.
    generator: torch.Generator | None = None  #: On the device of ``clean``.
    shard: Shard = WHOLE_BATCH  #: Part of the training batch that ``clean`` is.
    training: bool = True  #: Whether gradients are needed; terms may skip work in validation.
    noise_scale: Tensor | None = None  #: Of a noise-conditional model, (batch,) in [0, 1].
    context: Tensor | None = None  #: Context of each event.
    _residuals: dict[Any, tuple[Tensor, Tensor | None]] = field(default_factory=dict, init=False)

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
    def _context(self) -> Tensor | None:
        return with_noise_scale(self.context, self.noise_scale)

    @cached_property
    def _charted(self) -> ChartEncoding | None:
        if not isinstance(self.model, Mixture):
            return None
        return self.model.encode_on_charts(self.noisy, self._context)

    @cached_property
    def _trace(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        if self._charted is not None:
            u, v, log_prob = self.model.select_chart(self._charted)
            return [u], [v], log_prob

        def noise(h: Tensor) -> Tensor:
            return self.draw(torch.randn, *h.shape[1:], dtype=h.dtype)

        return self.model.trace(self.noisy, noise, self._context)

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
        h = select(self.model.decode, self._context, rows)(u)
        return h if self.outer is None else select(self.outer.decode, self.context, rows)(h)

    def jacobian(self, directions: Tensor | None = None) -> Tensor:
        """Compute the :func:`~.linearization.jacobian` of :meth:`decode` at u."""
        rows = torch.arange(len(self.u), device=self.u.device)
        return jacobian(lambda u, context: self.decode(u, context), self.u, directions, None, rows)

    def residuals(
        self, last_stage: int | None = None, space: str = "latent", random_dim: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Residuals of the projection, (batch, ...), and their weights; None if all are equal.

        :class:`.Reconstruction` explains the arguments. A mixture has the residuals of all charts,
        (K batch, ...), weighted by responsibilities of at least :data:`LEAST_RESPONSIBILITY`. In
        the space ``metric`` they are the latent residuals times the roots of the outer rotation's
        eigenvalues, scaled to the mean square of the image's.
        """
        key = last_stage, space, random_dim
        if key not in self._residuals:
            self._residuals[key] = self._compute_residuals(*key)
        return self._residuals[key]

    def _compute_residuals(
        self, last_stage: int | None, space: str, random_dim: float | None
    ) -> tuple[Tensor, Tensor | None]:
        if self._charted is not None:
            return self._chart_residuals(self._charted)
        stages = Hierarchy(self.model.stages[:last_stage]) if last_stage else self.model
        target, weights = self.clean, None
        if random_dim is None:
            u = self._trace[0][len(stages.stages) - 1]
            projection = stages._decode(u, None, self._context)
        else:
            projection, weights = self._nested_projection(stages, random_dim)
        if self.outer is not None and space == "image":
            with torch.no_grad():
                target = self.outer.decode(target, context=self.context)
            projection = self.outer.decode(projection, context=self.context)
        residuals = target - projection
        if self.outer is not None and space == "metric":
            eigenvalues: Any = self.outer.eigenvalues
            residuals = (eigenvalues * len(eigenvalues) / self.outer.event_dim).sqrt() * residuals
        return residuals, weights

    def _chart_residuals(self, charted: ChartEncoding) -> tuple[Tensor, Tensor]:
        # detached: the penalty moves the charts but not their responsibilities
        weights = charted.responsibilities.detach()
        # a chart can overflow at events of other charts, and 0 * inf is not finite
        near = weights > LEAST_RESPONSIBILITY
        u = torch.where(near[:, :, None], charted.u, 0.0)
        pairs = zip(self.model.charts, u, strict=True)
        decoded = [chart.decode(at, context=self._context) for chart, at in pairs]
        residuals = self.clean - torch.stack(decoded)
        near = near.view(*near.shape, *[1] * (residuals.dim() - 2))
        return torch.where(near, residuals, 0.0).flatten(0, 1), len(u) * weights.flatten()

    def _nested_projection(self, model: Hierarchy, random_dim: float) -> tuple[Tensor, Tensor]:
        """Project each event onto a manifold of a random dimension, drawn log-uniformly.

        This is nested dropout (Rippel et al. 2014; for flows: Bekasov & Murray 2020): the
        projection keeps as many leading latents of the last stage. Dimensions are d / random_dim to
        d * random_dim, or to the number of axes that the rotation has chosen, if that is less. The
        weight of an event is the first-order error at d (at most one less than the number of
        latents) divided by that at its dimension, at most :data:`LARGEST_WEIGHT`; 1 without a
        rotation.
        """
        *outside, last = model.stages
        low = max(1, round(last.dim / random_dim))
        ordered = last.latent_dim if last.rotation is None else last.rotation.directions
        high = min(ordered, round(last.dim * random_dim))
        uniform = self.draw(torch.rand)
        dims = (low * (high / low) ** uniform).round().long()
        z = torch.cat([parts[len(outside)] for parts in self._trace[:2]], 1)[:, :high]
        z = z * (torch.arange(high, device=z.device) < dims[:, None])
        if high > last.dim:
            projection = last.inverse(F.pad(z, (0, last.latent_dim - high)), self._context)
        else:
            projection = last.decode(F.pad(z, (0, last.dim - high)), context=self._context)
        for stage in reversed(outside):
            projection = stage.decode(projection, context=self._context)
        weight = torch.ones_like(uniform)
        if last.rotation is not None:
            tail = tail_sums(last.rotation.eigenvalues)
            error = tail[min(last.dim, last.latent_dim - 1)]  # with all latents there is none
            weight = error / tail[dims].clamp_min(error / LARGEST_WEIGHT)
        return projection, weight
