"""95% intervals: of means and medians over events, and of distances between two samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # whose parts load where they are used; its stats take half a second

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
    found = {"value": float(np.mean(values)) if n else None, "low": None, "high": None, "n": n}
    if n > 1:
        resampled = scipy.stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, AT_ONCE // n),
            method="percentile",
            random_state=0,
        )
        low, high = resampled.confidence_interval
        found |= {"low": float(low), "high": float(high)}
    return found


def median_interval(values: np.ndarray) -> dict[str, Any]:
    """Median of one value for each event, with its exact 95% interval from order statistics.

    Returns:
        ``value``, ``low``, ``high`` and the count ``n``.
    """
    interval: Any = scipy.stats.quantile_test(values, p=0.5).confidence_interval()
    ends = {"low": float(interval.low), "high": float(interval.high)}
    return {"value": float(np.median(values)), **ends, "n": len(values)}


def plus_minus(value: float, half_width: float) -> dict[str, float]:
    """Write down a value with the interval around it: ``value``, ``low``, ``high``."""
    return {"value": value, "low": value - half_width, "high": value + half_width}


def jackknife_subsets(
    n_real: int, n_fake: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Leave out each of 10 random groups of images in turn.

    Returns:
        The indices that stay, of the real and of the fake images, for each group; none at all if
        there are fewer than 10 images of either kind.
    """
    if min(n_real, n_fake) < GROUPS:
        return []
    real, fake = (np.array_split(rng.permutation(n), GROUPS) for n in (n_real, n_fake))
    return [
        (np.delete(np.arange(n_real), i), np.delete(np.arange(n_fake), j))
        for i, j in zip(real, fake, strict=True)
    ]


def jackknife_interval(
    value: float, left_out: Sequence[float], least: float = 0.0
) -> tuple[float | None, float | None]:
    r"""95% interval of a distance between two samples, by the delete-a-group jackknife.

    The standard error is :math:`\sqrt{(k-1)/k \sum_g (v_g - \bar v)^2}` over the values that leave
    out group g of both samples (Efron and Stein, 1981), and Student's t has k - 1 degrees of
    freedom. Such distances are biased upward in small samples, which the interval does not cover;
    a bootstrap, which repeats images, would add to the bias and can miss its own value.

    Returns:
        The lower end, cut at ``least``, and the upper; None, None with fewer than two groups.
    """
    groups = len(left_out)
    if groups < 2:
        return None, None
    error = np.std(left_out) * np.sqrt(groups - 1)
    half = scipy.stats.t.ppf(0.975, groups - 1) * error
    return max(least, float(value - half)), float(value + half)
