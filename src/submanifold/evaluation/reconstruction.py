"""Squared error of projections onto the manifold, and its dependence on the dimension."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.common.progress import ProgressBar
from submanifold.data.batches import Batch, Batches
from submanifold.data.events import Events
from submanifold.evaluation.baselines import pca_error, projected_events
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.flows.context import Context
from submanifold.models import CrossFitted, Hierarchy, Model

NEAREST_BATCH_SIZE = 64  # each nearest projection costs about twenty encodings
CURVE_DIMS = 12
SHOWN_DIMS = (2, 8, 32, 100)  #: Dimensions at which reports of images show nearest projections.
NEAREST_DIMS = 8  # dimensions of nearest projections in the curve
CURVE_PSNRS, CURVE_SHARES = (20, 25, 30, 35), (0.5, 0.8, 0.9, 0.95, 0.99)
"""Goals for images, in dB, and for vectors, as shares of the variance of the test data."""


def squared_errors(
    project: Callable[..., Tensor], batches: Iterable[Tensor] | Iterable[Batch]
) -> np.ndarray:
    """Compute mean squared errors (N,) of projections (:func:`.per_event`); pixels in [0, 1]."""

    def errors(x: Tensor, **context: Context) -> Tensor:
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
    if groups is not None and not of_images:
        groups = groups[: len(errors)][~over]
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
    model: Model,
    test: Events,
    baselines: Mapping[str, Any],
    device: torch.device,
    nearest_errors: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute squared errors of projections of the same test events as a function of d.

    They are ``mse`` and ``pca_mse`` at ``dims``, and ``nearest_mse`` at ``nearest_dims``
    (:func:`nearest_dims`). From d = D - 1 on projections are nearly exact; these are left out.
    ``nearest_errors`` (n,) are those of nearest projections at the model's d, if they are known.
    ``goals`` are errors by name, such as ``30 dB`` or ``explained variance 0.9``, and ``smallest``
    is the smallest d at which nearest projections reach them, interpolated, or None.
    """
    of_images = test.x.dtype == np.uint8
    goals = {f"{goal} dB": 10 ** (-goal / 10) for goal in CURVE_PSNRS}
    variance = None
    if not of_images:
        variance = float(np.var(test.x, axis=0, dtype=np.float64).mean())
        goals = {f"explained variance {goal}": (1 - goal) * variance for goal in CURVE_SHARES}
    model = model.manifold if isinstance(model, CrossFitted) else model
    batches = Batches(test[projected_events(len(test))], NEAREST_BATCH_SIZE, device=device)

    def mse(dim: int, nearest: bool) -> float | None:  # None if all projections overflow
        view = model.at_dim(dim) if isinstance(model, Hierarchy) else model
        project = partial(view.project, nearest=True) if nearest else view.encoder_projection
        if nearest and dim == model.dim and nearest_errors is not None:
            errors = nearest_errors
        else:
            errors = squared_errors(project, batches)
        return reconstruction(errors, of_images)["mse"]["value"]

    dims = of_nearest = [model.dim]
    if isinstance(model, Hierarchy):
        of_nearest = nearest_dims(model)
        last = min(model.max_dim, model.event_dim - 2)
        dims = sorted({*_geometric(1, last, CURVE_DIMS), *of_nearest}) if last > 0 else []
    errors: dict[bool, list[float | None]] = {False: [], True: []}
    with ProgressBar("error by dimension", "dimensions", len(dims) + len(of_nearest)) as progress:
        for nearest, of_kind in ((False, dims), (True, of_nearest)):
            for dim in of_kind:
                errors[nearest].append(mse(dim, nearest))
                progress.update()
    pca = [pca_error(baselines["projected"], d).get("mse", {}).get("value") for d in dims]
    return {
        "dims": dims,
        "mse": errors[False],
        "pca_mse": pca,
        "nearest_dims": of_nearest,
        "nearest_mse": errors[True],
        "n": len(batches),
        "variance": variance,
        "goals": goals,
        "smallest": {
            name: smallest_dim(of_nearest, errors[True], goal) for name, goal in goals.items()
        },
    }


def nearest_dims(model: Hierarchy) -> list[int]:
    """Return the dimensions of nearest projections in the curve, eight if there are as many.

    Those of images are the ones that reports show, the model's, and others up to half of the
    coordinates.
    """
    largest = min(model.max_dim, model.event_dim - 2)
    if len(model.event_shape) == 1:
        return _geometric(1, largest, NEAREST_DIMS) if largest > 0 else [model.dim]
    dims = {dim for dim in (*SHOWN_DIMS, model.dim) if dim <= largest}
    missing = NEAREST_DIMS - len(dims)
    if (half := min(largest, model.event_dim // 2)) > max(SHOWN_DIMS):
        dims |= {*_geometric(max(SHOWN_DIMS), half, missing + 1)}
    return sorted(dims or {*range(1, largest + 1)})


def smallest_dim(dims: list[int], errors: list[float | None], goal: float) -> int | None:
    """Interpolate, in logarithms, the smallest d whose error is at most a goal; None if none is.

    Example:
        >>> smallest_dim([2, 8, 32], [0.04, 0.01, 0.0025], 0.005)
        16
    """
    for number, (dim, error) in enumerate(zip(dims, errors, strict=True)):
        if error is None or error > goal:
            continue
        before = errors[number - 1] if number else None
        if not before or not error:
            return dim
        share = math.log(before / goal) / math.log(before / error)
        return math.ceil(dims[number - 1] * (dim / dims[number - 1]) ** share - 1e-9)
    return None


def _geometric(smallest: int, largest: int, count: int) -> list[int]:
    return sorted({round(float(d)) for d in np.geomspace(smallest, largest, count)})
