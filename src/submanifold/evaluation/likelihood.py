"""Exact densities on held-out data, and the bound on the bits that they make."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor


@torch.no_grad()
def per_event(measure: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> np.ndarray:
    """Apply a measure to every batch and gather its values, one for each event, as (N,) float64."""
    return torch.cat([measure(batch).double().cpu() for batch in batches]).numpy()


def importance_log_prob(log_probs: np.ndarray) -> np.ndarray:
    r"""Tighten the bound on a byte image's log-probability with K dequantisation draws.

    .. math:: \log P(x) = \log \int_{[0,1)^D} p(x + \epsilon)\, d\epsilon
              \ge \mathrm{E} \log \frac1K \sum_k p(x + \epsilon_k)

    K = 1 is the usual bound; it grows with K in expectation and meets log P(x) in the limit
    (Burda et al. 2016, theorem 1; Hoogeboom et al. 2020 for dequantisation). Both sides here lack
    the same constant, the volume of a pixel's bin, that bits per dimension add.

    Args:
        log_probs: log p of the same N images with K different noises, (K, N), nats.

    Returns:
        The bound of each image, (N,), nats.
    """
    return logsumexp(log_probs, axis=0) - np.log(len(log_probs))
