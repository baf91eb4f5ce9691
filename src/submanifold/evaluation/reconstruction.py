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


def reconstruction(errors: np.ndarray) -> dict[str, Any]:
    """Summarise squared errors as ``mse`` and ``psnr`` (dB), each with a 95% interval.

    A nearly singular decoder can turn a few projections into overflows; those are left out of the
    means and counted in ``not_finite``.
    """
    finite = errors[np.isfinite(errors)]
    return {
        "mse": mean_interval(finite),
        "psnr": mean_interval(-10 * np.log10(np.maximum(finite, 1e-12))),
        "not_finite": int(len(errors) - len(finite)),
    }
