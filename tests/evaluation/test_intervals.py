import numpy as np
import pytest
from scipy import stats

from submanifold.evaluation.intervals import (
    JACKKNIFE_SUBSETS,
    MIN_GROUPS,
    jackknife_interval,
    jackknife_subsets,
    mean_interval,
    median_interval,
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


def test_interval_of_a_skewed_mean_has_its_coverage():
    rng = np.random.default_rng(1)
    draws = [mean_interval(rng.exponential(5, 200)) for _ in range(200)]
    assert covered(draws, 5) == pytest.approx(0.95, abs=0.045)


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


@pytest.mark.parametrize(("values", "groups", "expected"), [
    ([], None, {"value": None, "low": None, "high": None, "n": 0}),
    ([2.0], None, {"value": 2.0, "low": None, "high": None, "n": 1}),
    ([0.5] * 4, None, {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4}),
    (np.arange(100.0), np.arange(100) % (MIN_GROUPS - 1),
     {"value": 49.5, "low": None, "high": None, "n": 100, "groups": MIN_GROUPS - 1}),
])  # fmt: skip
def test_few_values_or_groups_have_no_interval(values, groups, expected):
    assert mean_interval(np.array(values), groups) == expected


@pytest.mark.parametrize(("n_real", "n_fake"), [(10, 10), (37, 100), (100, 11)])
def test_jackknife_leaves_out_each_image_once(n_real, n_fake):
    subsets = jackknife_subsets(n_real, n_fake, np.random.default_rng(0))
    assert len(subsets) == JACKKNIFE_SUBSETS
    for side, n in enumerate((n_real, n_fake)):
        left_out = [np.setdiff1d(np.arange(n), pair[side]) for pair in subsets]
        assert sorted(np.concatenate(left_out)) == list(range(n))
        assert {len(part) for part in left_out} <= {n // 10, n // 10 + 1}


def test_jackknife_leaves_out_groups_together():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(200) % 23)
    subsets = jackknife_subsets(200, 50, rng, (groups, None))
    left_out = [np.setdiff1d(np.arange(200), real) for real, _ in subsets]
    assert sorted(np.concatenate(left_out)) == list(range(200))
    for (real, fake), out in zip(subsets, left_out, strict=True):
        assert not set(groups[real]) & set(groups[out])
        assert len(fake) == 45


@pytest.mark.parametrize(("n_real", "n_fake", "groups"), [
    (9, 100, (None, None)), (100, 9, (None, None)), (200, 50, (np.arange(200) % 9, None)),
])  # fmt: skip
def test_fewer_than_ten_images_or_groups_have_no_jackknife(n_real, n_fake, groups):
    assert jackknife_subsets(n_real, n_fake, np.random.default_rng(0), groups) == []


def test_jackknife_interval_of_a_mean_is_that_of_the_means_of_parts():
    values = np.random.default_rng(2).normal(10, 1, (10, 7))
    left_out = [np.delete(values, part, axis=0).mean() for part in range(10)]
    expected = stats.t.interval(0.95, 9, values.mean(), stats.sem(values.mean(1)))
    assert ends(jackknife_interval(values.mean(), left_out)) == pytest.approx(expected)


def test_jackknife_interval_is_clipped_at_zero_and_needs_two_parts():
    low, high = ends(jackknife_interval(0.1, [0.0, 0.2, 0.0, 0.2]))
    assert low == 0
    assert high > 0.1
    assert ends(jackknife_interval(0.1, [0.1])) == (None, None)
