"""Exact bits per dimension on held-out data."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def per_event(measure: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> np.ndarray:
    """Apply a measure to every batch and gather its values, one for each event, as (N,) float64."""
    return torch.cat([measure(batch).double().cpu() for batch in batches]).numpy()
