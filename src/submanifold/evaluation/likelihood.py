"""Log-densities of held-out data and the importance-weighted bound on bits per dimension."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.progress import track
from submanifold.data.batches import Batch, Batches
from submanifold.data.events import EventsLike
from submanifold.data.tables import Preprocessor
from submanifold.flows import is_noise_conditional, with_noise_scale
from submanifold.flows.context import Context, ContextLike, as_context, context_array
from submanifold.models import Model
from submanifold.models.model import bits_per_dim

BATCH_SIZE = 256  # events in a batch of encodings, projections or samples
ROW_DRAWS = 8
"""Draws of a row's noise, which leave about a third of the spread of one (docs/how-to/tables)."""


@torch.no_grad()
def per_event(
    function: Callable[..., Tensor], batches: Iterable[Tensor] | Iterable[Batch]
) -> np.ndarray:
    """Apply a function of x, and of ``context`` if there is one, to every batch: (N,) float64."""

    def call(x: Tensor, context: Context | None = None) -> Tensor:
        return function(x) if context is None else function(x, context=context)

    parts = ((batch,) if isinstance(batch, Tensor) else batch for batch in batches)
    values = [distributed.map_shards(call, *part).double() for part in parts]
    return torch.cat(values).cpu().numpy()


def importance_log_prob(log_probs: np.ndarray) -> np.ndarray:
    r"""Compute the importance-weighted bound on log P(x) of uint8 images from K noise draws.

    .. math:: \log P(x) = \log \int_{[0,1)^D} p(x + \epsilon)\, d\epsilon
              \ge \mathrm{E} \log \frac1K \sum_k p(x + \epsilon_k)

    It converges to log P(x) with K (Burda et al. 2016, theorem 1). From log-densities (K, N) to
    (N,), both in nats and without the volume of a quantization bin.
    """
    return scipy.special.logsumexp(log_probs, axis=0) - np.log(len(log_probs))


def dequantized_log_probs(
    model: Model, images: EventsLike, draws: int, device: str | torch.device
) -> np.ndarray:
    """Compute log-densities, (draws, N) nats, of uint8 images; draw k has the noise of seed k."""
    log_probs = []
    for seed in range(draws):
        batches = Batches(images, BATCH_SIZE, seed, device)
        title = f"bits per dimension, {seed + 1} of {draws}"
        log_probs.append(per_event(model.log_prob, track(batches, title, len(batches))))
    return np.stack(log_probs)


def noisy_log_prob(model: Model, batches: Batches, input_noise: float) -> np.ndarray:
    """Compute log-densities in nats, (N,), of inputs with the Gaussian noise of a DNF."""
    generator, has_scale = torch.Generator(batches.device), is_noise_conditional(model)

    def noisy() -> Iterator[Batch]:
        for x, context in batches.in_order(generator):
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            scale = x.new_ones(len(x)) if has_scale else None
            yield x + input_noise * noise, with_noise_scale(context, scale)

    return per_event(model.log_prob, noisy())


def to_bits_per_dim(log_prob: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Convert nats (N,) to bits per dimension of uint8 events (8 bits more) or floats (N, ...)."""
    bits = 8 if events.dtype == np.uint8 else 0
    return bits_per_dim(log_prob, math.prod(events.shape[1:]), bits)


def table_of(model: Model) -> Preprocessor | None:
    """Return the preprocessor of the table that a model describes; None if there is none."""
    return Preprocessor.from_dict(model.data["table"]) if "table" in model.data else None


class Draws(NamedTuple):
    """Noise of rows that is drawn again, see :meth:`.Preprocessor.draw`."""

    x: Tensor  #: (draws, batch, D)
    log_weights: Tensor  #: (draws, batch)


def redraw(table: Preprocessor, x: Tensor, context: Context | None) -> Draws | None:
    """Draw the noise of transformed rows (batch, D) :data:`ROW_DRAWS` times, always the same.

    None if no column has noise.
    """
    if not table.has_noise:
        return None
    drawn, log_weights = table.draw(x.detach().cpu().numpy(), context_array(context), ROW_DRAWS)
    return Draws(torch.from_numpy(drawn).to(x), torch.from_numpy(log_weights).to(x))


def log_prob(
    model: Model,
    x: Tensor,
    context: ContextLike = None,
    table: Preprocessor | None = None,
    noise_scale: float | None = None,
    draws: Draws | None = None,
) -> Tensor:
    r"""Compute log-densities in nats, (batch,); -inf where they are not a number.

    Quantized columns and missing values of a ``table`` are drawn again: the log-density of the
    observed values of a row, given which are missing, is

    .. math:: \log \frac1K \sum_k p(x_k) / q(x_k), \qquad x_k \sim q

    (:meth:`.Preprocessor.draw`), in standard units. ``noise_scale``, between 0 and 1, is that of
    a noise-conditional model. ``draws`` are those of :func:`redraw`, if they are known.
    """
    context = as_context(context)
    if draws is None and table is not None:
        draws = redraw(table, x, context)
    events, repeats = (x, 1) if draws is None else (draws.x.flatten(0, 1), len(draws.x))
    if context is not None:
        context = context.repeat(repeats)
    if noise_scale is not None:
        context = with_noise_scale(context, x.new_full(events.shape[:1], noise_scale))
    values = model.log_prob(events, context).nan_to_num(-math.inf, math.inf, -math.inf)
    if draws is None:
        return values
    return (values.view(repeats, -1) + draws.log_weights).logsumexp(0) - math.log(repeats)
