"""Statistics of claims of the paper that runs do not measure: normality of codes, sharpness."""

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import Batches
from submanifold.data.events import EventsLike
from submanifold.evaluation.intervals import Interval, jackknife_interval, jackknife_subsets
from submanifold.evaluation.likelihood import BATCH_SIZE
from submanifold.evaluation.metrics import Metric
from submanifold.models import Hierarchy
from submanifold.runs.experiments import CachedRun

DIRECTIONS = 256
STATISTICS = {
    "excess_kurtosis": Metric("excess_kurtosis", "excess kurtosis", ".3f"),
    "sharpness": Metric("sharpness", "sharpness", ".3f", better="higher"),
}
"""The statistics by name, in the claims of ``findings.yml``."""


def excess_kurtosis(u: np.ndarray) -> float:
    r"""Average the absolute excess kurtosis of u (n, d) along 256 random directions.

    The excess kurtosis is 0 for a normal distribution; for n normal draws the average is near
    :math:`\sqrt{48 / (\pi n)}`. It sees tails that coordinates share, such as those of a normal
    distribution with a random scale. Independent coordinates look normal in most directions of a
    high dimension, whatever their distribution.

    Example:
        >>> draws = np.random.default_rng(0).standard_normal((10_000, 20))
        >>> round(excess_kurtosis(draws), 2)
        0.04
    """
    directions = np.random.default_rng(0).standard_normal((u.shape[1], DIRECTIONS))
    along = np.asarray(u, np.float64) @ directions
    squares = (along - along.mean(0)) ** 2
    kurtosis = (squares**2).mean(0) / squares.mean(0) ** 2
    return float(np.abs(kurtosis - 3).mean())


def edge_energies(images: np.ndarray) -> np.ndarray:
    """Average the squared Laplacian of images (n, c, h, w) over inner pixels and channels, (n,)."""
    x = images.astype(np.float64)
    inner = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return np.asarray(((around - 4 * inner) ** 2).mean((1, 2, 3)))


def sharpness(samples: np.ndarray, test: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Divide the mean edge energy of samples by that of test images, with its 95% interval.

    1 means as sharp as test images; blur decreases it, and noise increases it. The interval is by
    the jackknife over images, or over ``groups`` of the test images.
    """
    real, fake = edge_energies(test), edge_energies(samples)
    subsets = jackknife_subsets(len(real), len(fake), (groups, None))
    left_out = [fake[j].mean() / real[i].mean() for i, j in subsets]
    return jackknife_interval(float(fake.mean() / real.mean()), left_out)


@torch.no_grad()
def codes_by_stage(model: Hierarchy, test: EventsLike) -> list[np.ndarray]:
    """Encode test images to the coordinates u after each stage, (n, d_m)."""
    device = next(model.parameters()).device
    batches = Batches(test, BATCH_SIZE, device=device)
    traces: list[list[Tensor]] = [model.trace(x, context=context)[0] for x, context in batches]
    return [torch.cat(codes).cpu().numpy() for codes in zip(*traces, strict=True)]


def measure_normality(run: CachedRun) -> list[Interval]:
    """Measure the :func:`excess_kurtosis` after each stage, and of as many ``normal`` draws."""
    test = run.load("x_test")
    groups = test.groups
    subsets = [kept for kept, _ in jackknife_subsets(len(test), len(test), (groups, groups))]
    return [
        {
            **jackknife_interval(
                excess_kurtosis(u), [excess_kurtosis(u[kept]) for kept in subsets]
            ),
            "normal": excess_kurtosis(np.random.default_rng(1).standard_normal(u.shape)),
        }
        for u in codes_by_stage(run.load_model(), test)
    ]


def measure_sharpness(run: CachedRun) -> Interval:
    """Measure the :func:`sharpness` of the samples of a run."""
    test = run.load("x_test")
    return sharpness(run.load("samples").x, test.x, test.groups)
