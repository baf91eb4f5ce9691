"""Squared error of projections onto the manifold, and its dependence on the dimension."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.common.progress import ProgressBar
from submanifold.data.batches import Batch, Batches
from submanifold.evaluation.baselines import FULL, Extent, evenly_spaced, pca_error
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.models import Hierarchy, Model

NEAREST_BATCH_SIZE = 64  # each nearest projection costs about twenty encodings
CURVE_DIMS = 20
SMALLEST_NEAREST_DIM = 32  # smallest dimension of nearest projections of images in the curve
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
    are left out. Images have a ``psnr`` of the mean error, and the mean ``psnr_per_image``.
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
    """Convert squared errors of pixels in [0, 1] to peak signal-to-noise ratios of at most 120."""
    return -10 * np.log10(np.maximum(errors, 1e-12))


def error_curve(
    model: Model, test: np.ndarray, baselines: Mapping[str, Any], device: torch.device,
    extent: Extent = FULL,
) -> dict[str, Any]:  # fmt: skip
    """Compute squared errors of projections of the same test events as a function of d.

    They are ``mse`` and ``pca_mse`` at ``dims``, and ``nearest_mse`` at ``nearest_dims``; ``goals``
    are errors by name, such as ``30 dB`` or ``explained variance 0.9``, and ``smallest`` is the
    smallest d at which the encoder projection reaches them, or None.
    """
    of_images = test.dtype == np.uint8
    goals = {f"{goal} dB": 10 ** (-goal / 10) for goal in CURVE_PSNRS}
    variance = None
    if not of_images:
        variance = float(np.var(test, axis=0, dtype=np.float64).mean())
        goals = {f"explained variance {goal}": (1 - goal) * variance for goal in CURVE_SHARES}
    batches = Batches(evenly_spaced(test, extent.curve), NEAREST_BATCH_SIZE, device=device)

    @cache
    def mse(dim: int, nearest: bool) -> float | None:  # None if all projections overflow
        view = model.at_dim(dim) if isinstance(model, Hierarchy) else model
        project = partial(view.project, nearest=True) if nearest else view.encoder_projection
        return reconstruction(squared_errors(project, batches), of_images)["mse"]["value"]

    def smallest_dim(goal: float) -> int | None:
        def misses(dim: int) -> bool:
            return (error := mse(dim, False)) is None or error > goal

        below = range(dims[-1] - 1, dims[0] - 1, -1)
        return None if misses(dims[-1]) else dims[-1] - bisect_left(below, True, key=misses)

    dims = nearest_dims = [model.dim]
    if isinstance(model, Hierarchy):
        last = model.max_dim
        dims = _geometric(1, last, CURVE_DIMS)
        first = min(SMALLEST_NEAREST_DIM if of_images else 1, last - 1)
        nearest_dims = _geometric(first, last - 1, extent.nearest_dims) if last > 1 else []
    with ProgressBar("error by dimension", "dimensions", len(dims) + len(nearest_dims)) as progress:
        for nearest, of_kind in ((False, dims), (True, nearest_dims)):
            for dim in of_kind:
                mse(dim, nearest)  # kept
                progress.update()
    pca = [pca_error(baselines, d, extent.curve).get("mse", {}).get("value") for d in dims]
    return {
        "dims": dims,
        "mse": [mse(d, False) for d in dims],
        "pca_mse": pca,
        "nearest_dims": nearest_dims,
        "nearest_mse": [mse(d, True) for d in nearest_dims],
        "n": len(batches),
        "variance": variance,
        "goals": goals,
        "smallest": {name: smallest_dim(goal) for name, goal in goals.items()},
    }


def _geometric(smallest: int, largest: int, count: int) -> list[int]:
    return sorted({round(float(d)) for d in np.geomspace(smallest, largest, count)})
