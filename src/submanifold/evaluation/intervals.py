"""95% intervals: of means and medians over events, and of distances between two samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # whose parts load where they are used; its stats take half a second

GROUPS = 10
FEWEST_GROUPS = 6
"""Fewer have no interval: it would cover the true mean less than 92 times of 100."""
RESAMPLES = 2000
AT_ONCE = 10**7

GroupsOfBoth = tuple[np.ndarray | None, np.ndarray | None]
"""The groups of real and of fake images; None where images are independent of each other."""


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Any]:
    """Mean of one value for each event, with its 95% interval by the bootstrap over events.

    The percentiles of the means of 2,000 resamples, always the same ones (Efron & Tibshirani 1993,
    chapter 13). Where events have groups, such as the patches of one photograph, events of one
    group are not independent: groups are resampled instead, with all their events, at
    :func:`interval_level` (the cluster bootstrap: Davison & Hinkley 1997, section 3.8).

    Args:
        values: One for each event, (n,).
        groups: The number of each event's group, (n,); or of more events, of which these are the
            first.

    Returns:
        ``value``, ``low``, ``high`` and the count ``n``, and the count ``groups`` where there are
        any; all but the counts are None for no values at all, and the interval for fewer than two,
        or fewer than six groups.
    """
    n = len(values)
    found = {"value": float(np.mean(values)) if n else None, "low": None, "high": None, "n": n}
    if groups is not None:
        sums, counts = group_sums(np.asarray(values, np.float64), groups[:n])
        found["groups"] = len(counts)
        level = interval_level(len(counts))
        if level is not None:
            means = _resampled_means(sums, counts)
            low, high = np.quantile(means, [level, 1 - level]).tolist()
            found |= {"low": low, "high": high}
    elif n > 1:
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


def group_sums(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values (n,) over the events of each group, (groups,), and their counts."""
    _, members = np.unique(groups, return_inverse=True)
    counts = np.bincount(members)
    return np.bincount(members, values, len(counts)), counts


def interval_level(groups: int) -> float | None:
    r"""The level of the lower percentile of a 95% bootstrap interval over a number of groups.

    :math:`\Phi(-\sqrt{g / (g - 1)}\; t_{0.975, g - 1})`, which is 2.5% for very many: percentiles
    of the resamples of few groups are too narrow (Hesterberg 2015, section 5.3). None for fewer
    than six.
    """
    if groups < FEWEST_GROUPS:
        return None
    wider = np.sqrt(groups / (groups - 1)) * scipy.stats.t.ppf(0.975, groups - 1)
    return float(scipy.special.ndtr(-wider))


def _resampled_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means over all events of groups that are drawn with replacement, (resamples,)."""
    rng, groups = np.random.default_rng(0), len(counts)
    at_once = max(1, AT_ONCE // groups)
    means = []
    for start in range(0, RESAMPLES, at_once):
        size = (min(at_once, RESAMPLES - start), groups)
        drawn = rng.integers(groups, size=size)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)


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
    n_real: int,
    n_fake: int,
    rng: np.random.Generator,
    groups: GroupsOfBoth = (None, None),
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Leave out each of 10 random sets of images in turn.

    Args:
        n_real: The count of real images.
        n_fake: The count of fake images.
        rng: Draws the sets.
        groups: Of the real and of the fake images, (n_real,) and (n_fake,) or of more, of which
            these are the first. The images of a group are left out together.

    Returns:
        The indices that stay, of the real and of the fake images, for each set; none at all if
        there are fewer than 10 images, or groups of them, of either kind.
    """
    members = [
        np.arange(n) if each is None else np.unique(each[:n], return_inverse=True)[1]
        for n, each in zip((n_real, n_fake), groups, strict=True)
    ]
    counts = [int(each.max(initial=-1)) + 1 for each in members]
    if min(counts) < GROUPS:
        return []
    real, fake = (np.array_split(rng.permutation(count), GROUPS) for count in counts)
    return [
        (np.flatnonzero(~np.isin(members[0], i)), np.flatnonzero(~np.isin(members[1], j)))
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
