import numpy as np
import pytest
from scipy import stats

from submanifold.evaluation.intervals import (
    GROUPS,
    jackknife_interval,
    jackknife_subsets,
    mean_interval,
    median_interval,
)


def test_the_interval_of_a_mean_is_that_of_its_resamples():
    values = np.random.default_rng(0).exponential(3, 200)
    rows = np.random.default_rng(1).integers(0, 200, (20_000, 200))
    expected = np.percentile(values[rows].mean(1), [2.5, 97.5])
    interval = mean_interval(values)
    assert interval["value"] == pytest.approx(values.mean())
    # the percentiles of 2,000 resamples have an error of about 0.04 standard errors
    tolerance = 0.15 * stats.sem(values)
    assert (interval["low"], interval["high"]) == pytest.approx(tuple(expected), abs=tolerance)
    assert interval["n"] == 200
    assert interval == mean_interval(values)


def test_the_interval_of_a_skewed_mean_covers_the_truth_19_times_of_20():
    rng = np.random.default_rng(1)
    draws = [mean_interval(rng.exponential(5, 200)) for _ in range(200)]
    covered = np.mean([draw["low"] < 5 < draw["high"] for draw in draws])
    assert covered == pytest.approx(0.95, abs=0.045)


def test_the_interval_of_a_heavy_tailed_median_covers_the_truth_19_times_of_20():
    rng = np.random.default_rng(1)
    draws = [median_interval(rng.standard_cauchy(200)) for _ in range(400)]
    covered = np.mean([draw["low"] < 0 < draw["high"] for draw in draws])
    assert covered == pytest.approx(0.95, abs=0.03)
    assert all(draw["low"] < draw["value"] < draw["high"] for draw in draws)


def test_few_values_have_no_interval():
    assert mean_interval(np.array([])) == {"value": None, "low": None, "high": None, "n": 0}
    assert mean_interval(np.array([2.0])) == {"value": 2.0, "low": None, "high": None, "n": 1}


def test_equal_values_have_an_interval_of_no_width():
    interval = mean_interval(np.full(4, 0.5))
    assert interval["low"] == interval["value"] == interval["high"] == 0.5


@pytest.mark.parametrize(("n_real", "n_fake"), [(10, 10), (37, 100), (100, 11)])
def test_each_image_is_left_out_once(n_real, n_fake):
    subsets = jackknife_subsets(n_real, n_fake, np.random.default_rng(0))
    assert len(subsets) == GROUPS
    for side, n in enumerate((n_real, n_fake)):
        left_out = [np.setdiff1d(np.arange(n), pair[side]) for pair in subsets]
        assert sorted(np.concatenate(left_out)) == list(range(n))
        assert {len(group) for group in left_out} <= {n // GROUPS, n // GROUPS + 1}


def test_fewer_than_ten_images_are_not_grouped():
    rng = np.random.default_rng(0)
    assert jackknife_subsets(9, 100, rng) == []
    assert jackknife_subsets(100, 9, rng) == []


def test_the_jackknife_of_a_mean_is_the_interval_of_the_group_means():
    values = np.random.default_rng(2).normal(10, 1, (10, 7))
    left_out = [np.delete(values, group, axis=0).mean() for group in range(10)]
    low, high = jackknife_interval(values.mean(), left_out)
    expected = stats.t.interval(0.95, 9, values.mean(), stats.sem(values.mean(1)))
    assert (low, high) == pytest.approx(expected)


def test_a_distance_is_not_negative_and_too_few_groups_give_no_interval():
    low, high = jackknife_interval(0.1, [0.0, 0.2, 0.0, 0.2])
    assert low == 0
    assert high > 0.1
    assert jackknife_interval(0.1, []) == (None, None)
    assert jackknife_interval(0.1, [0.1]) == (None, None)
