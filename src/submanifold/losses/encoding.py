"""A batch that is encoded by the stages in training: what a loss is a function of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from submanifold.common.distributed import WHOLE_BATCH, Shard
from submanifold.flows import is_noise_conditional, with_noise_scale
from submanifold.flows.context import Context
from submanifold.geometry.linearization import jacobian, repeat
from submanifold.models.defensive import DefensiveComponent
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.mixture import ChartEncoding, Mixture

Draw = Callable[..., Tensor]
"""Draws random numbers (batch, ...) by ``torch.rand`` or ``torch.randn``: see :func:`draws`."""


@dataclass(frozen=True)
class Encoding:
    """Events h, their coordinates and their log-density, by the model in training.

    Attributes:
        model: The stages in training, or a mixture.
        h: Their input, (batch, *event_shape): the image, or u of the stages before.
        us: Coordinates u of every stage, (batch, d_m), outermost first.
        vs: Off-manifold coordinates of every stage.
        log_prob: Log-density in nats, (batch,), of h with the input noise.
        draw: ``draw(torch.rand, *shape)`` draws (batch, *shape) random numbers.
        outer: The frozen stages before the model, if any.
        context: Context of each event, without the noise scale.
        noise_scale: Scale of the noise of each event, (batch,) in [0, 1], if the model receives it.
        decoder_context: What the model's decoder receives as its context, with a noise scale if u
            is not that of the smallest one.
        charts: Encodings of a mixture's charts.
    """

    model: Any
    h: Tensor
    us: list[Tensor]
    vs: list[Tensor]
    log_prob: Tensor
    draw: Draw
    outer: Hierarchy | None = None
    context: Context | None = None
    noise_scale: Tensor | None = None
    decoder_context: Context | None = None
    charts: ChartEncoding | None = None

    @property
    def u(self) -> Tensor:
        """Coordinates on the innermost manifold, (batch, d)."""
        return self.us[-1]

    @property
    def v(self) -> Tensor:
        """Off-manifold coordinates of all stages, (batch, D - d)."""
        return torch.cat(self.vs, 1)

    def decode(self, u: Tensor) -> Tensor:
        """Decode u (k batch, d), k codes of the events, one batch after the other.

        The model and the outer stages decode them to images, or to events of the first stage.
        """
        h = self.model.decode(u, context=repeat(self.decoder_context, len(u)))
        if self.outer is None:
            return h
        return self.outer.decode(h, context=repeat(self.context, len(u)))

    def jacobian(self, directions: Tensor | None = None) -> Tensor:
        """Compute the :func:`~.linearization.jacobian` of :meth:`decode` at u."""
        return jacobian(self.decode, self.u, directions)


@dataclass(frozen=True)
class InputNoise:
    r"""Normal noise on h, of which the density is (the denoising flow, DNF; :ref:`theory-3-10`).

    A noise-conditional flow receives the scale of the noise, which is random for each event: a
    uniform fraction of sigma_x (SoftFlow), or log-uniform between a smallest scale and sigma_x.

    Attributes:
        scale: sigma_x, in the units of h.
        smallest: Smallest scale of a noise-conditional flow; None is 0, with uniform scales.
    """

    scale: float = 0.0
    smallest: float | None = None

    def add(self, model: Any, h: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Draw noisy events, and the scale (batch,) that a noise-conditional model receives."""
        if self.scale == 0:
            return h, None
        noise = draw(torch.randn, *h.shape[1:], dtype=h.dtype)
        if not is_noise_conditional(model):
            return h + self.scale * noise, None
        scale = fraction = draw(torch.rand)
        if self.smallest is not None:
            fraction = (self.smallest / self.scale) ** (1 - scale)
        noise = fraction.view(-1, *(1 for _ in h.shape[1:])).to(h.dtype) * noise
        return h + self.scale * noise, scale

    def mix(self, log_prob: Tensor, h: Tensor, context: Context | None) -> Tensor:
        """Return the log-density (batch,) of noisy events h that the loss is a function of."""
        return log_prob


@dataclass(frozen=True)
class ScoringScale(InputNoise):
    """No noise, and one noise scale for all events, as in :func:`.likelihood.log_prob`.

    Attributes:
        chosen: The noise scale, in [0, 1].
        defensive: Component of the density, if any.
    """

    chosen: float = 0.0
    defensive: DefensiveComponent | None = None

    def add(self, model: Any, h: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Return the events and their noise scale (batch,)."""
        return h, h.new_full(h.shape[:1], self.chosen)

    def mix(self, log_prob: Tensor, h: Tensor, context: Context | None) -> Tensor:
        """Mix the density with the defensive component."""
        return log_prob if self.defensive is None else self.defensive.mix(log_prob, h, context)


def draws(h: Tensor, generator: torch.Generator | None = None, shard: Shard = WHOLE_BATCH) -> Draw:
    """Return the function that draws random numbers for events h, a shard of a training batch.

    It draws the numbers of the full batch and returns the rows of the shard, so that results do not
    depend on the number of shards.
    """

    def draw(sample: Draw, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        options = {"generator": generator, "dtype": dtype, "device": h.device}
        return shard.rows(sample(shard.count * len(h), *shape, **options))

    return draw


def encode(
    model: Any,
    h: Tensor,
    draw: Draw | None = None,
    noise: InputNoise = InputNoise(),
    outer: Hierarchy | None = None,
    context: Context | None = None,
    density_alone: bool = False,
) -> Encoding:
    """Encode events h by the model in training, behind frozen outer stages.

    Coordinates and log-density are those of h with noise, as in DNF, and targets of projections are
    clean. With log-uniform scales the coordinates are those of the clean h at the smallest scale,
    unless the loss needs the density alone.
    """
    draw = draw or draws(h)
    noisy, scale = noise.add(model, h, draw)
    used = with_noise_scale(context, scale)
    us, vs, log_prob, charts = _trace(model, noisy, draw, used)
    log_prob = noise.mix(log_prob, noisy, used)
    if noise.smallest is not None and not density_alone:
        (us, vs, _, charts), used = _trace(model, h, draw, context), context
    return Encoding(model, h, us, vs, log_prob, draw, outer, context, scale, used, charts)


def _trace(model: Any, h: Tensor, draw: Draw, context: Context | None) -> Any:
    if isinstance(model, Mixture):
        charts = model.encode_on_charts(h, context)
        u, v, log_prob = model.select_chart(charts)
        return [u], [v], log_prob, charts
    noise = lambda h: draw(torch.randn, *h.shape[1:], dtype=h.dtype)  # noqa: E731
    return *model.trace(h, noise, context), None
