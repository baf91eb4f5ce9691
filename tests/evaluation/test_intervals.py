import numpy as np
import pytest
from scipy import stats

from submanifold.evaluation.intervals import (
    MIN_GROUPS,
    jackknife_interval,
    jackknife_subsets,
    mean_interval,
    median_interval,
    over_seeds,
    proportion_interval,
)


def grouped(rng, count):
    """Values around 5 of groups of 10 to 40 events with different means, and the groups."""
    groups = np.repeat(np.arange(count), rng.integers(10, 41, count))
    means = 5 + rng.standard_normal(count)
    return means[groups] + rng.standard_normal(len(groups)), groups


def ends(interval):
    return interval["low"], interval["high"]


def covered(intervals, truth):
    return np.mean([each["low"] < truth < each["high"] for each in intervals])


def test_interval_of_a_heavy_tailed_median_has_its_coverage():
    rng = np.random.default_rng(1)
    draws = [median_interval(rng.standard_cauchy(200)) for _ in range(400)]
    assert covered(draws, 0) == pytest.approx(0.95, abs=0.03)
    assert all(draw["low"] < draw["value"] < draw["high"] for draw in draws)


@pytest.mark.parametrize("count", [MIN_GROUPS, 10, 40])
def test_interval_over_groups_has_its_coverage(count):
    rng = np.random.default_rng(count)
    draws = [mean_interval(*grouped(rng, count)) for _ in range(300)]
    assert covered(draws, 5) == pytest.approx(0.95, abs=0.035)
    assert {draw["groups"] for draw in draws} == {count}


def test_values_are_of_the_first_events_of_longer_groups():
    values, groups = np.repeat([0.0, 1.0, 2.0, 3.0] * 3, 2), np.arange(24) // 2
    longer = np.concatenate([groups, np.full(7, 99)])
    for interval in (mean_interval, proportion_interval):
        of_booleans = values > 1 if interval is proportion_interval else values
        assert interval(of_booleans, longer) == interval(of_booleans, groups)


def test_interval_of_a_proportion_over_groups_is_that_of_the_effective_number():
    """Korn & Graubard (1998): p (1 - p) / s^2 events, with the error s of a mean over groups."""
    groups = np.repeat(np.arange(20), 5)
    is_true = np.concatenate([np.arange(5) < number % 6 for number in range(20)])
    means = is_true.reshape(20, 5).mean(1)
    p, error = means.mean(), means.std(ddof=1) / np.sqrt(20)
    effective = p * (1 - p) / error**2
    assert 20 < effective < 100
    found = proportion_interval(is_true, groups)
    low = stats.beta.ppf(0.025, p * effective, effective - p * effective + 1)
    high = stats.beta.ppf(0.975, p * effective + 1, effective - p * effective)
    assert ends(found) == pytest.approx((low, high))
    rare = is_true & (groups < 4)  # in three groups: at most as many events as groups
    p = rare.reshape(20, 5).mean(1).mean()
    limited = stats.beta.ppf(0.975, 20 * p + 1, 20 - 20 * p)
    effective = p * (1 - p) / (rare.reshape(20, 5).mean(1).var(ddof=1) / 20)
    assert effective > 20
    assert ends(proportion_interval(rare, groups))[1] == pytest.approx(limited)


@pytest.mark.parametrize(
    ("values", "groups", "expected"),
    [
        ([], None, {"value": None, "low": None, "high": None, "n": 0}),
        ([2.0], None, {"value": 2.0, "low": None, "high": None, "n": 1}),
        ([0.5] * 4, None, {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4}),
        (
            np.arange(100.0),
            np.arange(100) % (MIN_GROUPS - 1),
            {"value": 49.5, "low": None, "high": None, "n": 100, "groups": MIN_GROUPS - 1},
        ),
    ],
)
def test_few_values_or_groups_have_no_interval(values, groups, expected):
    assert mean_interval(np.array(values), groups) == expected


def test_jackknife_leaves_out_groups_together():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(200) % 23)
    subsets = jackknife_subsets(200, 50, (groups, None))
    left_out = [np.setdiff1d(np.arange(200), real) for real, _ in subsets]
    assert sorted(np.concatenate(left_out)) == list(range(200))
    for (real, fake), out in zip(subsets, left_out, strict=True):
        assert not set(groups[real]) & set(groups[out])
        assert len(fake) == 45


def test_jackknife_interval_of_a_mean_is_that_of_the_means_of_parts():
    values = np.random.default_rng(2).normal(10, 1, (10, 7))
    left_out = [np.delete(values, part, axis=0).mean() for part in range(10)]
    expected = stats.t.interval(0.95, 9, values.mean(), stats.sem(values.mean(1)))
    assert ends(jackknife_interval(values.mean(), left_out)) == pytest.approx(expected)


def test_over_seeds_computes_a_t_interval_of_different_values():
    found = over_seeds([{"value": 1.0}, {"value": 2.0}, 6.0])
    assert found["value"] == 3.0
    # t of 0.975 with 2 degrees of freedom, times 2.6458 / sqrt(3)
    assert found["high"] - 3.0 == pytest.approx(4.30265 * 7**0.5 / 3**0.5, rel=1e-5)
    same = {"value": 1.0, "low": 0.5, "high": 1.5}
    for equal in ([same], [same, same], [same, 1.000001]):
        assert over_seeds(equal) == {"value": 1.0, "low": 0.5, "high": 1.5}
    for missing in ([None], [same, {"value": None, "why": "no"}]):
        assert over_seeds(missing) == {"value": None, "low": None, "high": None}


def test_intervals_without_groups_are_those_of_95_percent():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    tolerance = 0.05 * (high - low)  # 90% and 99% intervals differ by 0.08 and 0.16 of it
    assert ends(mean_interval(values)) == pytest.approx((low, high), abs=tolerance)
    exact = stats.binomtest(7, 40).proportion_ci()
    assert ends(proportion_interval(np.arange(40) < 7)) == pytest.approx(exact)
