"""Samples of a model, as arrays for files."""

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import quantize
from submanifold.data.events import Events
from submanifold.evaluation.likelihood import BATCH_SIZE
from submanifold.models import Model

TEMPERATURES = {"samples": 1.0, "samples_t07": 0.7}
COOL_SAMPLES = 64


def draw_samples(
    model: Model, count: int, seed: int, events: Events | None = None
) -> dict[str, Events]:
    """Draw samples, and a few at t = 0.7 with the same u; contexts are random ones of events."""
    contexts = None if events is None else events.context
    samples, device = {}, next(model.parameters()).device
    for name, n in {"samples": count, "samples_t07": COOL_SAMPLES}.items():
        generator, drawn, chosen = torch.Generator().manual_seed(seed), [], None
        if contexts is not None:
            chosen = contexts[np.random.default_rng(seed).integers(len(contexts), size=n)]
        for start in range(0, n, BATCH_SIZE):
            size, context = min(BATCH_SIZE, n - start), None
            if chosen is not None:
                context = torch.from_numpy(chosen[start : start + size]).to(device)
            drawn.append(stored(model.sample(size, TEMPERATURES[name], generator, context)))
        samples[name] = Events(np.concatenate(drawn), chosen)
    return samples


def stored(x: Tensor) -> np.ndarray:
    """Convert events to arrays: images (n, c, h, w) to uint8, vectors unchanged."""
    return (quantize(x) if x.ndim == 4 else x).cpu().numpy()
