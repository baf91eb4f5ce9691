"""Exact densities on held-out data, and the bound on the bits that they make."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import scipy
import torch
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.flows import noise_conditioning
from submanifold.models import Model
from submanifold.models.model import bits_per_dim

BATCH = 256


@torch.no_grad()
def per_event(measure: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> np.ndarray:
    """Apply a measure to every batch and gather its values, one for each event, as (N,) float64.

    Several processes (:mod:`submanifold.common.distributed`) share the rows of each batch.
    """
    found = [distributed.by_rows(measure, batch).double() for batch in batches]
    return torch.cat(found).cpu().numpy()


def importance_log_prob(log_probs: np.ndarray) -> np.ndarray:
    r"""Tighten the bound on a byte image's log-probability with K dequantisation draws.

    .. math:: \log P(x) = \log \int_{[0,1)^D} p(x + \epsilon)\, d\epsilon
              \ge \mathrm{E} \log \frac1K \sum_k p(x + \epsilon_k)

    K = 1 is the usual bound; it grows with K in expectation and meets log P(x) in the limit
    (Burda et al. 2016, theorem 1; Hoogeboom et al. 2020 for dequantisation). From (K, N) nats to
    (N,); both lack the volume of a pixel's bin, which bits per dimension add.
    """
    return scipy.special.logsumexp(log_probs, axis=0) - np.log(len(log_probs))


def dequantized_log_probs(
    model: Model, images: np.ndarray, draws: int, device: str | torch.device
) -> np.ndarray:
    """Log-density of uint8 images (N, ...) with K dequantisation noises, (K, N), nats.

    Each draw has its own seed: the first draws of more are the same.
    """
    log_probs = []
    for seed in range(draws):
        batches = Batches(images, BATCH, seed, device)
        title = f"bits per dimension, {seed + 1} of {draws}"
        log_probs.append(per_event(model.log_prob, track(batches, title, len(batches))))
    return np.stack(log_probs)


def noisy_log_prob(model: Model, batches: Batches, input_noise: float) -> np.ndarray:
    """Log-density of inputs with the normal noise that a DNF was trained with, (N,), nats.

    The batches' generator draws it; its standard deviation is in the unit of the inputs. A model
    that can be told how much it is is told.
    """
    noisy = (
        x + input_noise * torch.randn(x.shape, generator=batches.generator, device=x.device)
        for x in batches
    )

    def log_prob(x: Tensor) -> Tensor:
        with noise_conditioning(model, x.new_ones(len(x))):
            return model.log_prob(x)

    return per_event(log_prob, noisy)


def to_bits_per_dim(log_prob: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Turn nats for an event, (N,), into bits for a dimension of these uint8 or float events.

    Bytes add the 8 bits that a dimension was quantised to, so that the value bounds the bits that
    code it.
    """
    bits = 8 if events.dtype == np.uint8 else 0
    return bits_per_dim(log_prob, math.prod(events.shape[1:]), bits)
