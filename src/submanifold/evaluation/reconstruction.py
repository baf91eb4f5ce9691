"""How far test data lies from the manifold."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import Tensor

from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event


def squared_errors(project: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> np.ndarray:
    """Mean squared error of each event's projection over its coordinates, (N,).

    On images in [-0.5, 0.5) it is in units of the [0, 1] scale, squared.
    """
    return per_event(lambda x: (x - project(x)).square().flatten(1).mean(1), batches)


def reconstruction(
    errors: np.ndarray, of_images: bool = True, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Summarise squared errors, each number with a 95% interval.

    A nearly singular decoder can turn a few projections into overflows, counted in ``overflows``:
    those of images whose error is above 1, the most that two images can differ by, count as 1;
    points whose error is not finite are left out.

    Args:
        errors: Of each event, (N,).
        of_images: Whether events are images.
        groups: Of images, as in :func:`~submanifold.evaluation.intervals.mean_interval`.

    Returns:
        ``mse``; of images also ``psnr``, that of the mean squared error, and ``psnr_per_image``,
        the mean of the images' own, which is larger where their errors differ; ``overflows``.
    """
    over = ~np.isfinite(errors) | (of_images & (errors > 1))
    counted = np.where(over, 1.0, errors) if of_images else errors[~over]
    mse = mean_interval(counted, groups)
    found = {"mse": mse, "overflows": int(over.sum())}
    if of_images:
        ends = {"value": mse["value"], "low": mse["high"], "high": mse["low"]}
        decibels = {
            end: None if error is None else float(psnr(error)) for end, error in ends.items()
        }
        found["psnr"] = {**mse, **decibels}
        found["psnr_per_image"] = mean_interval(psnr(counted), groups)
    return found


def psnr(errors: Any) -> Any:
    """Peak signal-to-noise ratio in dB of mean squared errors on pixels in [0, 1], at most 120."""
    return -10 * np.log10(np.maximum(errors, 1e-12))
