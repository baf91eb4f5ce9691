"""Comparison of samples, and as a reference of training images, with test images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from submanifold.data.events import EventsLike, as_events
from submanifold.evaluation import features
from submanifold.evaluation.intervals import (
    GroupPair,
    Interval,
    jackknife_interval,
    jackknife_subsets,
    proportion_interval,
)

NEIGHBORS, MIN_IMAGES = 3, 4
KERNEL_ROWS = 1000
TOO_FEW = {
    "value": None,
    "why": f"not measured: there are fewer than {MIN_IMAGES} test images or samples",
}


def sample_quality(
    train: EventsLike,
    test: EventsLike,
    samples: np.ndarray,
    weights: str | None,
    device: torch.device,
) -> dict[str, Any]:
    """Compare samples, and as a reference training images, with test images.

    Features are EfficientNet's or, if `weights` is ``download`` or a path, Inception's. FID uses
    all images. The other distances use equal numbers: the first samples or a fixed random subset of
    the test images. ``training_images`` are the same four of a random subset of the training
    images, or None if these are fewer than the compared samples.
    """
    train, test = as_events(train), as_events(test)
    count = min(len(test), len(samples))
    fakes: list[tuple[np.ndarray, np.ndarray | None]] = [(samples, None)]
    if len(train) >= count:  # shuffled, because neighbors can share a photograph
        drawn = train[np.random.default_rng(0).permutation(len(train))[: len(samples)]]
        fakes.append((drawn.x, drawn.groups))
    frechet, network = "frechet_distance", "EfficientNet-Lite0"
    if weights:
        frechet, network = "fid", "Inception"
    if count < MIN_IMAGES:
        measured = [dict.fromkeys((frechet, *ON_FEATURES), TOO_FEW) for _ in fakes]
    else:
        subset = np.sort(np.random.default_rng(0).choice(len(test), count, replace=False))
        of_subset = test[subset].groups

        def equal(sets: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [sets[0][subset], *(fake[:count] for fake in sets[1:])]

        images = [test.x, *(fake for fake, _ in fakes)]
        try:
            if weights:
                compared = features.inception_features(images, weights, device)
                scaled, of_real = equal(compared), test.groups
            else:
                compared = features.efficientnet_features(equal(images), device)
                scale = np.sqrt(np.mean(compared[0] ** 2)) or 1.0  # for the kernel
                scaled, of_real = [x / scale for x in compared], of_subset
        except features.MissingWeightsError as error:
            fid = {"value": None, "why": str(error)}
            return {"fid": fid} | sample_quality(train, test, samples, None, device)
        measured = [
            {frechet: frechet_distance(compared[0], compared[number], (of_real, of_fake))}
            | {
                name: distance(scaled[0], scaled[number], (of_subset, of_fake))
                for name, distance in ON_FEATURES.items()
            }
            for number, (_, of_fake) in enumerate(fakes, 1)
        ]
    training = measured[1] if len(measured) > 1 else None
    return measured[0] | {"features": network, "training_images": training}


def frechet_distance(
    real: np.ndarray, fake: np.ndarray, groups: GroupPair = (None, None)
) -> Interval:
    r"""Compute the squared Wasserstein-2 distance of fitted Gaussians with its jackknife interval.

    That of Inception features (n, f) is the FID (Heusel et al., "GANs Trained by a Two Time-Scale
    Update Rule", NeurIPS 2017):

    .. math:: |\mu_a - \mu_b|^2 + \mathrm{tr}\,\Sigma_a + \mathrm{tr}\,\Sigma_b
              - 2\,\mathrm{tr}\,(\Sigma_a \Sigma_b)^{1/2}

    With :math:`\Sigma_a = A^T A` and :math:`\Sigma_b = B^T B` the last trace is the nuclear norm of
    :math:`A B^T`. Unlike torch-fidelity's eigenvalues of :math:`\Sigma_a \Sigma_b`, it is exact for
    singular covariances and fast for fewer images than features. The distance is biased upward by
    O(1 / n): compare values of equal numbers of images only.
    """
    subsets = jackknife_subsets(len(real), len(fake), groups)
    left_out = [_frechet_distance(real[i], fake[j]) for i, j in subsets]
    interval = jackknife_interval(_frechet_distance(real, fake), left_out)
    return interval | {"n_real": len(real), "n_fake": len(fake)}


def _frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    traces = np.sum(root_a**2) + np.sum(root_b**2)
    overlap = np.linalg.norm(root_a @ root_b.T, ord="nuc")
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + traces - 2 * overlap))


def _mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (f,) and R, (min(n, f), f), such that R^T R is the covariance."""
    features = np.asarray(features, dtype=np.float64)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    if len(root) <= root.shape[1]:
        return mean, root
    try:  # in a tenth of the time of the QR decomposition
        return mean, np.linalg.cholesky(root.T @ root).T
    except np.linalg.LinAlgError:  # a singular covariance
        return mean, np.asarray(np.linalg.qr(root, mode="r"))


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, groups: GroupPair = (None, None)
) -> Interval:
    r"""Compute the unbiased squared maximum mean discrepancy with its 95% jackknife interval.

    That of Inception features is the KID (Binkowski et al., "Demystifying MMD GANs", ICLR 2018),
    with the kernel :math:`k(a, b) = (a^T b / f + 1)^3` of features of length f:

    .. math:: \mathrm{mean}_{i \neq j} k(x_i, x_j) + \mathrm{mean}_{i \neq j} k(y_i, y_j)
              - 2\,\mathrm{mean}_{i, j} k(x_i, y_j)

    over all pairs; torch-fidelity averages over random subsets instead. It can be negative.
    """
    counts = len(real), len(fake)
    everything = tuple(np.arange(count) for count in counts)
    subsets = [everything, *jackknife_subsets(*counts, groups)]
    # membership of each feature in each subset, 0 or 1, (subsets, features)
    in_real, in_fake = (
        np.stack([np.bincount(rows, minlength=count) for rows in kept])
        for kept, count in zip(zip(*subsets, strict=True), counts, strict=True)
    )
    across = _kernel_sums(real, fake, in_real, in_fake)
    values = -2 * across / (in_real.sum(axis=1) * in_fake.sum(axis=1))
    for x, in_x in (real, in_real), (fake, in_fake):
        diagonal = in_x @ (np.mean(x**2, axis=1) + 1) ** 3
        n = in_x.sum(axis=1)
        values += (_kernel_sums(x, x, in_x, in_x) - diagonal) / (n * (n - 1))
    value, *left_out = values.tolist()
    interval = jackknife_interval(value, left_out, minimum=-np.inf)
    return interval | {"n_real": counts[0], "n_fake": counts[1]}


def _kernel_sums(x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """Return the sums of the kernel over all pairs of each subset, (subsets,)."""
    sums = np.zeros(len(in_x))
    for start in range(0, len(x), KERNEL_ROWS):  # all pairs of 10,000 images would take 1 GB
        rows = slice(start, start + KERNEL_ROWS)
        kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
        sums += ((in_x[:, rows] @ kernel) * in_y).sum(axis=1)
    return sums


def precision(real: np.ndarray, fake: np.ndarray, groups: GroupPair = (None, None)) -> Interval:
    """Compute the fraction of fakes in the real manifold: the sample quality.

    Improved precision of Kynkaanniemi et al., NeurIPS 2019. The manifold is the union of balls
    around the real features with the distance to the third nearest neighbor as radius. Two samples
    of one distribution do not reach 1: compare values of equal numbers of images only. The interval
    is the exact one for fixed balls (:func:`.proportion_interval`).
    """
    from sklearn.metrics import pairwise_distances_chunked  # scikit-learn takes seconds to import
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=NEIGHBORS, algorithm="brute").fit(real)
    radii = nearest.kneighbors()[0][:, -1]  # without an argument, a point is not its own neighbor
    chunks = pairwise_distances_chunked(
        fake, real, reduce_func=lambda distances, _: (distances <= radii).any(axis=1)
    )
    inside = np.concatenate(list(chunks))
    interval = proportion_interval(inside, groups[1])
    del interval["n"]
    return interval | {"n_real": len(real), "n_fake": len(fake)}


def recall(real: np.ndarray, fake: np.ndarray, groups: GroupPair = (None, None)) -> Interval:
    """Compute the fraction of reals in the manifold of the fakes: the sample diversity."""
    swapped = precision(fake, real, groups[::-1])
    return swapped | {"n_real": len(real), "n_fake": len(fake)}


ON_FEATURES = {"kid": kernel_distance, "precision": precision, "recall": recall}
