"""95% intervals of means, medians and distances of events, or of groups such as photographs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # submodules load on first use; scipy.stats takes half a second

JACKKNIFE_SUBSETS = 10
MIN_GROUPS = 6  # intervals over fewer groups would cover the true mean less than 92% of the time
RESAMPLES = 2000
MAX_RESAMPLED_VALUES = 10**7

EQUAL = 1e-5  # relative difference of equal numbers, one of which was read from a file
ENDS = ("value", "low", "high")

Interval = dict[str, Any]  # value, low and high, mostly with counts such as n

GroupPair = tuple[np.ndarray | None, np.ndarray | None]  # of real and of fake images


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Compute a mean over events (n,) and its 95% interval by the percentile bootstrap.

    The 2,000 resamples have a fixed seed (Efron & Tibshirani 1993, chapter 13). With group numbers
    (n,) or longer, whole groups are resampled at :func:`interval_level` (Davison & Hinkley 1997,
    section 3.8). ``value`` is None for n = 0, the ends for n < 2 or fewer than 6 groups.
    """
    n, value = len(values), float(np.mean(values)) if len(values) else None
    interval: Interval = {"value": value, "low": None, "high": None, "n": n}
    sample: dict[str, Any] = {"data": (values,), "statistic": np.mean, "random_state": 0}
    level: float | None = 0.025

    def ratio(sums: np.ndarray, counts: np.ndarray, axis: int) -> Any:
        return sums.sum(axis) / counts.sum(axis)

    if groups is not None:
        sample = {
            "data": _sums_of_groups(values, groups),
            "statistic": ratio,
            "paired": True,
            "random_state": np.random.default_rng(0),
        }
        interval["groups"] = len(sample["data"][0])
        level = interval_level(interval["groups"])
    if n < 2 or level is None:
        return interval
    batch = max(1, MAX_RESAMPLED_VALUES // len(sample["data"][0]))
    resampled = scipy.stats.bootstrap(
        **sample, n_resamples=RESAMPLES, batch=batch, method="percentile"
    )
    ends = np.quantile(resampled.bootstrap_distribution, [level, 1 - level])
    interval["low"], interval["high"] = map(float, ends)
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


def proportion_interval(events: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    r"""Compute a proportion of events (n,) of booleans and its exact 95% binomial interval.

    With group numbers (n,) or longer, groups have equal weights, and the interval is that of
    Clopper and Pearson for the effective number of events :math:`p (1 - p) / s^2`, at most n, where
    :math:`s` is the standard error over groups (Korn & Graubard 1998). If fewer than 6 groups
    contain a true event, or fewer than 6 a false one, s is unreliable, and the effective number is
    at most the number of groups.
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
    """Return a symmetric interval."""
    return {"value": value, "low": value - half_width, "high": value + half_width}


def student_interval(value: float, error: float, count: int) -> dict[str, float]:
    """Compute the 95% interval by Student's t, given the standard error of `count` numbers."""
    return plus_minus(value, float(scipy.stats.t.ppf(0.975, count - 1) * error))


def jackknife_subsets(
    n_real: int, n_fake: int, groups: GroupPair = (None, None)
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Leave out each of 10 random parts of the groups of real and fake images, if there are 10.

    The results are the numbers of the kept real and fake images.
    """
    members = [
        np.arange(n) if numbers is None else np.unique(numbers[:n], return_inverse=True)[1]
        for n, numbers in zip((n_real, n_fake), groups, strict=True)
    ]
    counts = [int(numbers.max(initial=-1)) + 1 for numbers in members]
    if min(counts) < JACKKNIFE_SUBSETS:
        return []
    rng = np.random.default_rng(0)
    parts = (np.array_split(rng.permutation(count), JACKKNIFE_SUBSETS) for count in counts)
    kept = (
        [np.flatnonzero(~np.isin(of, part)) for part in split]
        for of, split in zip(members, parts, strict=True)
    )
    return list(zip(*kept, strict=True))


def jackknife_interval(value: float, left_out: Sequence[float], minimum: float = 0.0) -> Interval:
    r"""Compute the 95% interval of a distance of two samples by the delete-a-group jackknife.

    The standard error is :math:`\sqrt{(k-1)/k \sum_g (v_g - \bar v)^2}` over the distances that
    leave out one of k parts (Efron and Stein, 1981). The upward bias of distances is not covered.
    ``low`` is clipped at `minimum`; the ends are None for k < 2.
    """
    count = len(left_out)
    if count < 2:
        return {"value": value, "low": None, "high": None}
    interval = student_interval(value, np.std(left_out) * np.sqrt(count - 1), count)
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
    error = np.std(numbers, ddof=1) / np.sqrt(len(numbers))
    return student_interval(float(np.mean(numbers)), error, len(numbers))
