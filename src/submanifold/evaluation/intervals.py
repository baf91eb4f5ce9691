"""95% intervals: of means over events, and of distances between two samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from scipy.stats import t as student_t

GROUPS = 10
RESAMPLES = 2000
AT_ONCE = 10**7


def mean_interval(values: np.ndarray) -> dict[str, Any]:
    """Mean of one value for each event, with its 95% interval by the bootstrap over events.

    The percentiles of the means of 2,000 resamples, always the same ones (Efron & Tibshirani 1993,
    chapter 13).

    Returns:
        ``value``, ``low``, ``high`` and the count ``n``; all but n are None for no values at all,
        and the interval for fewer than two.
    """
    n = len(values)
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    mean = float(np.mean(values))
    if n == 1:
        return {"value": mean, "low": None, "high": None, "n": 1}
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // n),
        method="percentile",
        random_state=0,
    ).confidence_interval
    return {"value": mean, "low": float(found.low), "high": float(found.high), "n": n}


def jackknife_subsets(
    n_real: int, n_fake: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Leave out each of 10 random groups of images in turn.

    Args:
        n_real: Number of real images.
        n_fake: Number of fake images.
        rng: Draws the groups.

    Returns:
        The indices that stay, of the real and of the fake images, one pair for each group; no
        pair at all if there are fewer than 10 images of either kind.
    """
    if min(n_real, n_fake) < GROUPS:
        return []
    groups = zip(
        np.array_split(rng.permutation(n_real), GROUPS),
        np.array_split(rng.permutation(n_fake), GROUPS),
        strict=True,
    )
    return [(np.delete(np.arange(n_real), i), np.delete(np.arange(n_fake), j)) for i, j in groups]


def jackknife_interval(
    value: float, left_out: Sequence[float]
) -> tuple[float | None, float | None]:
    r"""95% interval of a distance between two samples, by the delete-a-group jackknife.

    The standard error is :math:`\sqrt{(k-1)/k \sum_g (v_g - \bar v)^2}` over the values that leave
    out group g of both samples (Efron and Stein, 1981); the interval is the value plus or minus
    Student's t with k - 1 degrees of freedom, cut at zero. Such distances are biased upward in
    small samples; a bootstrap, which repeats images, adds to that bias and can miss its own value,
    whereas leaving out groups shifts all :math:`v_g` alike. The interval does not cover the bias.

    Args:
        value: Of all images.
        left_out: Of the images without group g, for each g.

    Returns:
        The lower and the upper end; None, None with fewer than two groups.
    """
    groups = len(left_out)
    if groups < 2:
        return None, None
    error = np.std(left_out) * np.sqrt(groups - 1)
    half = student_t.ppf(0.975, groups - 1) * error
    return max(0.0, float(value - half)), float(value + half)
