"""Squared error of projections onto the manifold, and its dependence on the dimension."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.common.progress import track
from submanifold.data.batches import Batch, Batches
from submanifold.evaluation.baselines import CURVE_EVENTS, evenly_spaced, pca_error
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.models import Hierarchy, Model

NEAREST_BATCH_SIZE = 64
"""Events in a batch of nearest projections, each of which costs about twenty encodings."""
CURVE_DIMS, CURVE_NEAREST_DIMS = 20, 7
SMALLEST_NEAREST_DIM = 32
"""Smallest dimension of nearest projections of images in the curve."""
CURVE_PSNRS, CURVE_SHARES = (20, 25, 30, 35), (0.5, 0.8, 0.9, 0.95, 0.99)
"""Goals for images, in dB, and for vectors, as shares of the variance of the test data."""


def squared_errors(
    project: Callable[..., Tensor], batches: Iterable[Tensor] | Iterable[Batch]
) -> np.ndarray:
    """Compute mean squared errors (N,) of projections (:func:`.per_event`); pixels in [0, 1]."""

    def errors(x: Tensor, **context: Tensor) -> Tensor:
        return (x - project(x, **context)).square().flatten(1).mean(1)

    return per_event(errors, batches)


def reconstruction(
    errors: np.ndarray, of_images: bool = True, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Summarize squared errors (N,) with 95% intervals.

    Projections can overflow where a decoder is nearly singular. Errors of images above 1, the
    largest difference of two images, and non-finite ones count as 1; non-finite errors of points
    are left out.

    Returns:
        ``mse`` and the number of ``overflows``. For images also ``psnr``, of the mean squared
        error, and ``psnr_per_image``, the mean over the PSNRs of images, in dB.
    """
    over = ~np.isfinite(errors) | (of_images & (errors > 1))
    counted = np.where(over, 1.0, errors) if of_images else errors[~over]
    mse = mean_interval(counted, groups)
    summary = {"mse": mse, "overflows": int(over.sum())}
    if of_images:
        ends = {"value": mse["value"], "low": mse["high"], "high": mse["low"]}
        summary["psnr"] = mse | {k: None if v is None else float(psnr(v)) for k, v in ends.items()}
        summary["psnr_per_image"] = mean_interval(psnr(counted), groups)
    return summary


def psnr(errors: Any) -> Any:
    """Convert squared errors of pixels in [0, 1] to a peak signal-to-noise ratio of at most 120 dB.

    Example:
        >>> round(float(psnr(0.01)), 6)
        20.0
    """
    return -10 * np.log10(np.maximum(errors, 1e-12))


def error_curve(
    model: Model, test: np.ndarray, baselines: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Compute the squared error of the projection onto the first d latents as a function of d.

    All errors are those of the same 128 evenly spaced test events, uint8 images or float vectors
    (N, ...). Only hierarchies have more than one dimension.

    Returns:
        ``mse`` of the encoder projection and ``pca_mse`` (None where PCA was not fitted) at
        ``dims``; ``nearest_mse`` of the nearest projection at ``nearest_dims``; the number of
        events ``n``; ``goals``: errors by name, such as ``30 dB`` or ``explained variance 0.9``;
        ``smallest``: by the same names, the smallest d at which the encoder projection reaches it,
        or None; and for vectors the mean ``variance`` of their coordinates.
    """
    of_images = test.dtype == np.uint8
    goals = {f"{goal} dB": 10 ** (-goal / 10) for goal in CURVE_PSNRS}
    variance = None
    if not of_images:
        variance = float(np.var(test, axis=0, dtype=np.float64).mean())
        goals = {f"explained variance {goal}": (1 - goal) * variance for goal in CURVE_SHARES}
    batches = Batches(evenly_spaced(test, CURVE_EVENTS), NEAREST_BATCH_SIZE, device=device)

    @cache
    def mse(dim: int, nearest: bool = False) -> float | None:  # None if all projections overflow
        view = model.at_dim(dim) if isinstance(model, Hierarchy) else model
        project = partial(view.project, nearest=True) if nearest else view.encoder_projection
        return reconstruction(squared_errors(project, batches), of_images)["mse"]["value"]

    def reaches(dim: int, goal: float) -> bool:
        return (error := mse(dim)) is not None and error <= goal

    def smallest_dim(goal: float) -> int | None:
        """Find the smallest dimension with an error of at most `goal` by bisection, or None."""
        low, high = dims[0] - 1, dims[-1]
        if not reaches(high, goal):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle, goal) else (middle, high)
        return high

    dims = nearest_dims = [model.dim]
    if isinstance(model, Hierarchy):
        last = model.max_dim
        dims = _geometric(1, last, CURVE_DIMS)
        first = min(SMALLEST_NEAREST_DIM if of_images else 1, last - 1)
        nearest_dims = _geometric(first, last - 1, CURVE_NEAREST_DIMS) if last > 1 else []
    tracked = track([[d] for d in dims], "error by dimension", len(dims))
    pca = [pca_error(baselines, d, CURVE_EVENTS).get("mse", {}).get("value") for d in dims]
    return {
        "dims": dims,
        "mse": [mse(d) for (d,) in tracked],
        "pca_mse": pca,
        "nearest_dims": nearest_dims,
        "nearest_mse": [mse(d, nearest=True) for d in nearest_dims],
        "n": len(batches),
        "variance": variance,
        "goals": goals,
        "smallest": {name: smallest_dim(goal) for name, goal in goals.items()},
    }


def _geometric(smallest: int, largest: int, count: int) -> list[int]:
    return sorted({round(float(d)) for d in np.geomspace(smallest, largest, count)})
