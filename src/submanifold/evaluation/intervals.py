"""95% confidence intervals of means, of medians and of distances between two samples.

Events may come in groups, such as patches of one photograph, that are not independent of each
other. Intervals are then computed over groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # submodules load on first use; scipy.stats takes half a second

JACKKNIFE_SUBSETS = 10
MIN_GROUPS = 6
"""Intervals over fewer groups would cover the true mean less than 92% of the time."""
RESAMPLES = 2000
MAX_RESAMPLED_VALUES = 10**7

EQUAL = 1e-5  # relative difference of equal numbers, one of which was read from a file
ENDS = ("value", "low", "high")

Interval = dict[str, Any]
"""``value``, ``low`` and ``high``, mostly with counts such as ``n``."""

GroupPair = tuple[np.ndarray | None, np.ndarray | None]
"""Group numbers of real and of fake images; None for independent images."""


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Compute a mean over events (n,) and its 95% interval by the percentile bootstrap.

    The 2,000 resamples have a fixed seed (Efron & Tibshirani 1993, chapter 13). With group numbers
    (n,) or longer, whole groups are resampled at :func:`interval_level` (Davison & Hinkley 1997,
    section 3.8).

    Returns:
        ``value``, ``low``, ``high``, the count ``n``, and the number of ``groups``. ``value`` is
        None for n = 0; ``low`` and ``high`` are None for n < 2 or fewer than 6 groups.

    Example:
        >>> mean_interval(np.array([1.0, 1.0, 1.0]))
        {'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 3}
    """
    n = len(values)
    interval = {"value": float(np.mean(values)) if n else None, "low": None, "high": None, "n": n}
    if groups is not None:
        sums, counts = _sums_of_groups(values, groups)
        interval["groups"] = len(counts)
        if (level := interval_level(len(counts))) is not None:
            means = _resampled_means(sums, counts)
            interval["low"], interval["high"] = np.quantile(means, [level, 1 - level]).tolist()
    elif n > 1:
        resampled = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, batch=max(1, MAX_RESAMPLED_VALUES // n),
            method="percentile", random_state=0,
        )  # fmt: skip
        interval["low"], interval["high"] = map(float, resampled.confidence_interval)
    return interval


def interval_level(groups: int) -> float | None:
    r"""Return the lower percentile, as a fraction, of a 95% bootstrap interval over groups.

    :math:`\Phi(-\sqrt{g / (g - 1)}\; t_{0.975, g - 1})` widens the interval for few groups
    (Hesterberg 2015, section 5.3). None for fewer than 6 groups.
    """
    if groups < MIN_GROUPS:
        return None
    wider = np.sqrt(groups / (groups - 1)) * scipy.stats.t.ppf(0.975, groups - 1)
    return float(scipy.special.ndtr(-wider))


def _sums_of_groups(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, members, counts = np.unique(groups[: len(values)], return_inverse=True, return_counts=True)
    return np.bincount(members, np.asarray(values, np.float64), len(counts)), counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means over the events of groups drawn with replacement, (RESAMPLES,)."""
    rng, groups = np.random.default_rng(0), len(counts)
    chunk = max(1, MAX_RESAMPLED_VALUES // groups)
    means = []
    for start in range(0, RESAMPLES, chunk):
        drawn = rng.integers(groups, size=(min(chunk, RESAMPLES - start), groups))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)


def proportion_interval(events: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    r"""Compute a proportion of events (n,) of booleans and its exact 95% binomial interval.

    With group numbers (n,) or longer, groups have equal weights, and the interval is that of
    Clopper and Pearson for the effective number of events :math:`p (1 - p) / s^2`, at most n, where
    :math:`s` is the standard error over groups (Korn & Graubard 1998). If fewer than 6 groups
    contain a true event, or fewer than 6 a false one, s is unreliable, and the effective number is
    at most the number of groups.

    Returns:
        ``value``, ``low``, ``high``, the count ``n``, and the number of ``groups``.

    Example:
        >>> interval = proportion_interval(np.array([True, False, False, False]))
        >>> [round(interval[end], 3) for end in ENDS]
        [0.25, 0.006, 0.806]
    """
    n = effective = len(events)
    values, counted = np.asarray(events, float), {}
    if groups is not None:
        sums, counts = _sums_of_groups(values, groups)
        values, effective = sums / counts, len(counts)
        counted["groups"] = effective
        if len(counts) > 1 and (variance := values.var(ddof=1) / len(counts)) > 0:
            few = min((values > 0).sum(), (values < 1).sum()) < MIN_GROUPS
            most = len(counts) if few else n
            effective = min(most, values.mean() * (1 - values.mean()) / variance)
    value = float(values.mean())
    count, beta = value * effective, scipy.stats.beta.ppf
    low = float(beta(0.025, count, effective - count + 1)) if count > 0 else 0.0
    high = float(beta(0.975, count + 1, effective - count)) if count < effective else 1.0
    return {"value": value, "low": low, "high": high, "n": n, **counted}


def false_alarm_range(rate: float, count: int, calibrated: int) -> tuple[float, float]:
    r"""Compute the central 95% range of the fraction of false alarms among normal events.

    A p-value from n calibration events is at most the rate :math:`\alpha` with a probability that
    depends on them and is :math:`\mathrm{Beta}(\alpha (n + 1), (1 - \alpha)(n + 1))` (Vovk 2012).
    The number of false alarms among `count` new events is therefore beta-binomial.
    """
    count = min(count, 100_000)  # the time of the next line is linear
    a, b = rate * (calibrated + 1), (1 - rate) * (calibrated + 1)
    low, high = scipy.stats.betabinom.interval(0.95, count, a, b)
    return float(low / count), float(high / count)


def median_interval(values: np.ndarray) -> Interval:
    """Compute the median over events (n,) and its exact 95% interval from order statistics."""
    interval: Any = scipy.stats.quantile_test(values, p=0.5).confidence_interval()
    ends = {"low": float(interval.low), "high": float(interval.high)}
    return {"value": float(np.median(values)), **ends, "n": len(values)}


def plus_minus(value: float, half_width: float) -> dict[str, float]:
    """Return ``value``, ``low`` and ``high`` of a symmetric interval."""
    return {"value": value, "low": value - half_width, "high": value + half_width}


def jackknife_subsets(
    n_real: int, n_fake: int, rng: np.random.Generator, groups: GroupPair = (None, None)
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split the groups of real and of fake images into 10 random parts; leave out each in turn.

    Returns:
        Indices of the kept real and fake images for each part; empty for fewer than 10 real or fake
        images or groups.
    """
    members = [
        np.arange(n) if numbers is None else np.unique(numbers[:n], return_inverse=True)[1]
        for n, numbers in zip((n_real, n_fake), groups, strict=True)
    ]
    counts = [int(numbers.max(initial=-1)) + 1 for numbers in members]
    if min(counts) < JACKKNIFE_SUBSETS:
        return []
    real, fake = (np.array_split(rng.permutation(count), JACKKNIFE_SUBSETS) for count in counts)
    return [
        (np.flatnonzero(~np.isin(members[0], i)), np.flatnonzero(~np.isin(members[1], j)))
        for i, j in zip(real, fake, strict=True)
    ]


def jackknife_interval(value: float, left_out: Sequence[float], minimum: float = 0.0) -> Interval:
    r"""Compute the 95% interval of a distance of two samples by the delete-a-group jackknife.

    The standard error is :math:`\sqrt{(k-1)/k \sum_g (v_g - \bar v)^2}` over the distances that
    leave out one of k parts (Efron and Stein, 1981), and Student's t has k - 1 degrees of freedom.
    The upward bias of distances is not covered. ``low`` is clipped at `minimum`; the ends are None
    for k < 2.
    """
    count = len(left_out)
    if count < 2:
        return {"value": value, "low": None, "high": None}
    error = np.std(left_out) * np.sqrt(count - 1)
    interval = plus_minus(value, float(scipy.stats.t.ppf(0.975, count - 1) * error))
    return interval | {"low": max(minimum, interval["low"])}


def over_seeds(values: Sequence[Any]) -> dict[str, Any]:
    """Average the values of several seeds, numbers or mappings with ``value``, ``low``, ``high``.

    With one seed, or equal values, the interval is that of the first seed, over test images;
    otherwise it is that of the mean over seeds. All are None if a seed has no value.
    """
    intervals = [value if isinstance(value, Mapping) else {"value": value} for value in values]
    numbers: list[Any] = [interval.get("value") for interval in intervals]
    if None in numbers:
        return dict.fromkeys(ENDS)
    if np.allclose(numbers, numbers[0], rtol=EQUAL, atol=0):
        return {end: intervals[0].get(end) for end in ENDS}
    return interval_over_seeds(numbers)


def interval_over_seeds(numbers: Sequence[float]) -> dict[str, float]:
    """Mean of two or more seeds with its 95% interval by Student's t."""
    n = len(numbers)
    error = np.std(numbers, ddof=1) / np.sqrt(n)
    return plus_minus(float(np.mean(numbers)), float(scipy.stats.t.ppf(0.975, n - 1) * error))
