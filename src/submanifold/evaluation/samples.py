"""Samples of a model, and events as arrays on disk hold them."""

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import quantize
from submanifold.models import Model

BATCH = 256
TEMPERATURES = {"samples": 1.0, "samples_cool": 0.7}
COOL = 64


def draw_samples(model: Model, count: int, seed: int) -> dict[str, np.ndarray]:
    """Draw from the learned manifold at every temperature of :data:`TEMPERATURES`.

    One seed draws the same u for every temperature, and on any device.

    Returns:
        ``samples``, so many, and 64 ``samples_cool`` for a picture, as of :func:`stored`.
    """
    samples = {}
    for name, n in {"samples": count, "samples_cool": COOL}.items():
        generator = torch.Generator().manual_seed(seed)
        sizes = [min(BATCH, n - start) for start in range(0, n, BATCH)]
        drawn = [model.sample(size, TEMPERATURES[name], generator) for size in sizes]
        samples[name] = np.concatenate([stored(each) for each in drawn])
    return samples


def stored(x: Tensor) -> np.ndarray:
    """Turn events into arrays as on disk: images (n, c, h, w) into bytes, vectors as they are."""
    return (quantize(x) if x.ndim == 4 else x).cpu().numpy()
