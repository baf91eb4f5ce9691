"""What a manifold of each dimension misses, beside PCA's: one rotated model has them all."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import pca_error
from submanifold.evaluation.reconstruction import reconstruction, squared_errors
from submanifold.models import Hierarchy, Model
from submanifold.models.model import NEAREST_STEPS

IMAGES, NEAREST_IMAGES = 256, 64
POINTS, NEAREST_POINTS = 20, 7
PSNRS = (20, 25, 30, 35)
BATCH = 64


def error_curve(
    model: Model, test: np.ndarray, baselines: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Measure the squared error of the projection onto the first d latents, by d.

    Args:
        model: The model, on the device; behind a rotation its latents are in order. One that is no
            hierarchy has its own dimension alone.
        test: Test images, uint8 (N, ...), of which the first are taken.
        baselines: What :func:`submanifold.evaluation.baselines.fit_baselines` returned.
        device: Where the model is.

    Returns:
        ``dims`` and by them ``mse`` of the encoder's projection, and ``pca_mse``, of all test
        images, None where it was not fitted; ``nearest_dims`` and ``nearest_mse`` of the nearest
        point; the counts ``n`` and ``n_nearest`` of images; and ``smallest``: for some PSNRs in dB
        the smallest d whose PSNR (of the encoder's mean squared error) is no less, None if none is.
    """
    nested = isinstance(model, Hierarchy)
    largest = model.max_dim if isinstance(model, Hierarchy) else model.dim
    some = Batches(test[:IMAGES], BATCH, device=device)
    few = Batches(test[:NEAREST_IMAGES], BATCH, device=device)
    measured: dict[int, dict[str, Any]] = {}

    def at(dim: int) -> Model:
        return model.at_dim(dim) if isinstance(model, Hierarchy) else model

    def encoder(dim: int) -> dict[str, Any]:
        if dim not in measured:
            measured[dim] = reconstruction(squared_errors(at(dim).project, some))
        return measured[dim]

    def nearest(dim: int) -> float:
        project = partial(at(dim).project, steps=NEAREST_STEPS)
        return reconstruction(squared_errors(project, few))["mse"]["value"]

    wanted = _spread(largest, POINTS) if nested else [largest]
    few_dims = _spread(largest - 1, NEAREST_POINTS, min(32, largest - 1)) if nested else [largest]
    for (dim,) in track([[d] for d in wanted], "error by dimension", len(wanted)):
        encoder(dim)
    return {
        "dims": wanted,
        "mse": [encoder(d)["mse"]["value"] for d in wanted],
        "pca_mse": [pca_error(baselines, d).get("mse", {}).get("value") for d in wanted],
        "nearest_dims": few_dims,
        "nearest_mse": [nearest(d) for d in few_dims],
        "n": len(some),
        "n_nearest": len(few),
        "smallest": {str(psnr): _smallest(encoder, psnr, largest, nested) for psnr in PSNRS},
    }


def _smallest(measure: Any, psnr: float, largest: int, nested: bool) -> int | None:
    """The smallest dimension that reaches a PSNR, by bisection: more dimensions miss less."""
    if measure(largest)["psnr"]["value"] < psnr:
        return None
    low, high = 0 if nested else largest - 1, largest
    while high - low > 1:
        middle = (low + high) // 2
        reached = measure(middle)["psnr"]["value"] >= psnr
        low, high = (low, middle) if reached else (middle, high)
    return high


def _spread(largest: int, count: int, least: int = 1) -> list[int]:
    """Dimensions from the least to the largest at about equal ratios."""
    return sorted({round(float(d)) for d in np.geomspace(least, largest, count)})
