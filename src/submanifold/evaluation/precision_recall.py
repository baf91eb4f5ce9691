"""Precision, recall and kernel distance of two sets of features: quality, diversity, and both.

The features are Inception's, see :func:`~submanifold.evaluation.frechet.inception_features`, or
where its weights are not at hand :func:`pixel_features`. Values on different features are different
quantities.
"""

from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_chunked
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches

from submanifold.evaluation.intervals import (
    GroupsOfBoth,
    jackknife_interval,
    jackknife_subsets,
    mean_interval,
)

NEIGHBOURS = 3
ROWS_AT_ONCE = 1000
LARGEST_REFERENCE = 5000


def precision_recall(
    real: np.ndarray,
    fake: np.ndarray,
    neighbours: int = NEIGHBOURS,
    groups: GroupsOfBoth = (None, None),
) -> dict[str, dict[str, Any]]:
    """Measure how many fakes look real, and how much of what is real the fakes reach.

    The improved precision and recall of Kynkaanniemi et al., NeurIPS 2019
    (https://arxiv.org/abs/1904.06991), who take the features of VGG-16. A set is replaced by the
    union of balls around its members, each with the distance to its k-th nearest neighbour as
    radius. Precision is the share of fakes inside the real balls, recall the share of reals inside
    the fake balls. Two samples of one distribution do not reach 1, and both values depend on the
    counts: compare equal ones. The 95% intervals are Wilson's for a share, with the balls held
    fixed; new samples of both sets vary more (a jackknife would be far too wide). Where those that
    are counted have groups, the intervals are those of the bootstrap over groups.

    Args:
        real: Features, shape (n_real, f), of any unit.
        fake: Features, shape (n_fake, f), of the same unit.
        neighbours: k. The paper takes 3.
        groups: Of the real and of the fake features.

    Returns:
        `precision` and `recall`, each with `value` in [0, 1], its 95% interval `low`, `high`, the
        counts `n_real`, `n_fake`, and the count `groups` where there are any.

    Raises:
        ValueError: Either set has too few members to have a k-th neighbour.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(
            f"expected more than {neighbours} features of each kind, not {len(real)}, {len(fake)}"
        )
    counts = {"n_real": len(real), "n_fake": len(fake)}
    return {
        "precision": _share(_inside(fake, real, neighbours), groups[1]) | counts,
        "recall": _share(_inside(real, fake, neighbours), groups[0]) | counts,
    }


def _share(inside: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Share of features that are inside, with its 95% interval."""
    if groups is not None:
        found = mean_interval(inside, groups)
        del found["n"]
        return found
    share = binomtest(int(inside.sum()), len(inside))
    low, high = share.proportion_ci(0.95, method="wilson")
    return {"value": float(share.statistic), "low": float(low), "high": float(high)}


def _inside(points: np.ndarray, centres: np.ndarray, neighbours: int) -> np.ndarray:
    """Whether each point is in the ball of any centre; shape (points,), bool."""
    nearest = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(centres)
    radii = nearest.kneighbors()[0][:, -1]  # without an argument, a centre is not its own neighbour
    chunks = pairwise_distances_chunked(
        points, centres, reduce_func=lambda distances, _: (distances <= radii).any(axis=1)
    )
    return np.concatenate(list(chunks))


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, seed: int = 0, groups: GroupsOfBoth = (None, None)
) -> dict[str, Any]:
    r"""Measure the squared maximum mean discrepancy; with Inception's features this is the KID.

    Binkowski et al., "Demystifying MMD GANs", ICLR 2018 (https://arxiv.org/abs/1801.01401), with
    their kernel of two features of length f, :math:`k(a, b) = (a^T b / f + 1)^3`:

    .. math:: \mathrm{mean}_{i \neq j} k(x_i, x_j) + \mathrm{mean}_{i \neq j} k(y_i, y_j)
              - 2\,\mathrm{mean}_{i, j} k(x_i, y_j)

    over all rows at once instead of averaged over random subsets. It is unbiased at any counts,
    unlike a FID, and so it may be negative where the distributions are close.

    Args:
        real: Features x, shape (n_real, f), n_real >= 2.
        fake: Features y, shape (n_fake, f), n_fake >= 2.
        seed: Of the jackknife's sets.
        groups: Of the real and of the fake features.

    Returns:
        `value`, its 95% interval `low`, `high` by
        :func:`~submanifold.evaluation.intervals.jackknife_interval` (None with fewer than 10 rows
        on either side), and the counts `n_real`, `n_fake`. The unit is that of the kernel, not the
        thousandths in which some report it.
    """
    counts = len(real), len(fake)
    if min(counts) < 2:
        raise ValueError(f"expected two features of each kind, not {counts[0]}, {counts[1]}")
    every = [np.arange(count) for count in counts]
    subsets = [every, *jackknife_subsets(*counts, np.random.default_rng(seed), groups)]
    # which rows are in each subset, 0 or 1, shape (subsets, rows)
    in_real, in_fake = (
        np.stack([np.bincount(rows, minlength=count) for rows in stays])
        for stays, count in zip(zip(*subsets, strict=True), counts, strict=True)
    )
    across = _kernel_sums(real, fake, in_real, in_fake)
    discrepancies = -2 * across / (in_real.sum(axis=1) * in_fake.sum(axis=1))
    for x, in_x in (real, in_real), (fake, in_fake):
        itself = in_x @ (np.mean(x**2, axis=1) + 1) ** 3
        n = in_x.sum(axis=1)
        discrepancies += (_kernel_sums(x, x, in_x, in_x) - itself) / (n * (n - 1))
    value, *left_out = discrepancies.tolist()
    low, high = jackknife_interval(value, left_out, least=-np.inf)
    return {"value": value, "low": low, "high": high, "n_real": counts[0], "n_fake": counts[1]}


def _kernel_sums(x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """Sums of the kernel over all pairs of each subset, shape (subsets,)."""
    # in chunks, because the kernel of all pairs of 10,000 images takes a gigabyte
    return sum(
        ((in_x[:, rows] @ polynomial_kernel(x[rows], y)) * in_y).sum(axis=1)
        for rows in gen_batches(len(x), ROWS_AT_ONCE)
    )


def pixel_features(
    reference: np.ndarray, *sets: np.ndarray, components: int = 64
) -> list[np.ndarray]:
    """Describe images by their coordinates on the leading principal axes of reference images.

    They see colour, brightness and coarse shape, not what a picture is of. On axes that were fitted
    to themselves the real images would spread wider, which lends fakes precision and takes recall.

    Args:
        reference: Images, uint8 of shape (n, channels, height, width); a random 5,000 of more.
        *sets: Images to describe, real or fake, uint8 of shape (m, channels, height, width).
        components: The largest number of axes; fewer images or pixels have fewer.

    Returns:
        Features of each set, shape (m, d), float64, d at most `components`, scaled alike so that
        the reference has a mean square of 1, where the kernel is neither flat nor all cube.

    Raises:
        ValueError: The arrays are not uint8 images of one shape.
    """
    for images in (reference, *sets):
        if images.dtype != np.uint8 or images.shape[1:] != reference.shape[1:]:
            raise ValueError(
                "expected uint8 images of one shape,"
                f" not {images.dtype} of {images.shape[1:]} beside {reference.shape[1:]}"
            )
    fitted = _flat(reference[some_rows(len(reference), LARGEST_REFERENCE)])
    axes = max(1, min(components, len(fitted) - 1, fitted.shape[1]))
    with np.errstate(invalid="ignore"):  # of shares of no variance, which are not used
        pca = PCA(axes, random_state=0).fit(fitted)
    scale = np.sqrt(np.mean(pca.transform(fitted) ** 2)) or 1.0
    return [pca.transform(_flat(images)) / scale for images in sets]


def some_rows(count: int, most: int) -> np.ndarray:
    """Indices of all rows, or of a random choice of `most`, always the same, and in order."""
    return np.sort(np.random.default_rng(0).choice(count, min(count, most), replace=False))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
