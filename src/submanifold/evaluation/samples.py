"""Samples of a model, as arrays for files."""

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import quantize
from submanifold.evaluation.likelihood import BATCH_SIZE
from submanifold.models import Model

TEMPERATURES = {"samples": 1.0, "samples_cool": 0.7}
COOL_SAMPLES = 64


def draw_samples(model: Model, count: int, seed: int) -> dict[str, np.ndarray]:
    """Draw samples on the manifold at the temperatures of :data:`TEMPERATURES`, with the same u.

    Returns:
        ``count`` ``samples``, and 64 ``samples_cool`` for a figure; see :func:`stored`.
    """
    samples = {}
    for name, n in {"samples": count, "samples_cool": COOL_SAMPLES}.items():
        generator = torch.Generator().manual_seed(seed)
        sizes = [min(BATCH_SIZE, n - start) for start in range(0, n, BATCH_SIZE)]
        drawn = [model.sample(size, TEMPERATURES[name], generator) for size in sizes]
        samples[name] = np.concatenate([stored(each) for each in drawn])
    return samples


def stored(x: Tensor) -> np.ndarray:
    """Convert events to arrays: images (n, c, h, w) to uint8, vectors unchanged."""
    return (quantize(x) if x.ndim == 4 else x).cpu().numpy()
