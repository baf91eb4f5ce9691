"""Metrics of samples, which compare them with test images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from submanifold.evaluation.feature_distances import NEIGHBORS, frechet_distance_with_interval
from submanifold.evaluation.intervals import GroupPair, Interval
from submanifold.evaluation.sliced_wasserstein import sliced_wasserstein

MIN_IMAGES = NEIGHBORS + 1
TOO_FEW = {
    "value": None,
    "why": f"not measured: there are fewer than {MIN_IMAGES} test images or samples",
}
"""The value of a metric on features where there are not enough images."""

Features = tuple[np.ndarray, np.ndarray]
"""Features of real and of fake images."""


@dataclass(frozen=True)
class SampleComparison:
    """Test images and samples, uint8 (n, channels, height, width), and their features.

    Attributes:
        groups: Group numbers of both.
        inception: Inception features of all images, or the reason why there are none.
        features: Inception or pixel features of equal numbers of images; None for too few images.
        subset: Indices of the real images in `features`.
    """

    real: np.ndarray
    fake: np.ndarray
    groups: GroupPair
    inception: Features | str
    features: Features | None
    subset: np.ndarray


def random_subset(count: int, size: int) -> np.ndarray:
    """Return sorted indices of a fixed random subset; all indices if size >= count."""
    return np.sort(np.random.default_rng(0).choice(count, min(count, size), replace=False))


def fid(comparison: SampleComparison) -> Interval:
    """Compute the Frechet inception distance of all images."""
    if comparison.features is None:
        return TOO_FEW
    if isinstance(comparison.inception, str):
        return {"value": None, "why": comparison.inception}
    return frechet_distance_with_interval(*comparison.inception, groups=comparison.groups)


def feature_metric(distance: Callable[..., Interval]) -> Callable[[SampleComparison], Interval]:
    """Return a function that computes a distance of the features of real and fake images."""

    def metric(comparison: SampleComparison) -> Interval:
        if comparison.features is None:
            return TOO_FEW
        real, fake = comparison.groups
        groups = None if real is None else real[comparison.subset], fake
        return distance(*comparison.features, groups=groups)

    return metric


def swd(comparison: SampleComparison) -> Interval:
    """Compute the sliced Wasserstein distance, of at most as many fake as real images."""
    real, fake = comparison.real, comparison.fake
    return sliced_wasserstein(real, fake[: len(real)], groups=comparison.groups)
