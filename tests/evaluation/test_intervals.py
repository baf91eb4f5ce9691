import numpy as np
import pytest
from scipy import stats

from submanifold.evaluation.intervals import (
    FEWEST_GROUPS,
    GROUPS,
    interval_level,
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


def grouped(rng, count):
    """Values around 5 of groups of 10 to 40 events, whose means differ; and their groups."""
    groups = np.repeat(np.arange(count), rng.integers(10, 41, count))
    means = 5 + rng.standard_normal(count)
    return means[groups] + rng.standard_normal(len(groups)), groups


@pytest.mark.parametrize("count", [FEWEST_GROUPS, 10, 40])
def test_the_interval_over_groups_covers_the_truth_19_times_of_20(count):
    rng = np.random.default_rng(count)
    draws = [mean_interval(*grouped(rng, count)) for _ in range(300)]
    covered = np.mean([draw["low"] < 5 < draw["high"] for draw in draws])
    assert covered == pytest.approx(0.95, abs=0.035)
    assert {draw["groups"] for draw in draws} == {count}


def test_the_interval_over_groups_is_that_of_resampled_groups():
    rng = np.random.default_rng(0)
    values, groups = grouped(rng, 60)
    order = rng.permutation(len(values))
    interval = mean_interval(values[order], groups[order])
    assert interval["value"] == pytest.approx(values.mean())
    assert interval["n"] == len(values)
    members = [values[groups == group] for group in range(60)]
    means = [
        np.concatenate([members[i] for i in rng.integers(60, size=60)]).mean() for _ in range(4000)
    ]
    level = interval_level(60)
    expected = np.quantile(means, [level, 1 - level])
    assert (interval["low"], interval["high"]) == pytest.approx(
        tuple(expected), abs=0.15 * np.std(means)
    )


def test_groups_of_one_event_are_independent_events():
    values = np.random.default_rng(0).standard_normal(500)
    one, each = mean_interval(values), mean_interval(values, np.arange(500))
    assert (each["low"], each["high"]) == pytest.approx(
        (one["low"], one["high"]), abs=0.15 * stats.sem(values)
    )


def test_values_may_be_of_the_first_of_the_events_that_have_groups():
    values, groups = grouped(np.random.default_rng(0), 20)
    assert mean_interval(values[:50], groups) == mean_interval(values[:50], groups[:50])


def test_few_groups_have_no_interval():
    few = np.arange(100) % (FEWEST_GROUPS - 1)
    assert mean_interval(np.arange(100.0), few) == {
        "value": 49.5, "low": None, "high": None, "n": 100, "groups": FEWEST_GROUPS - 1,
    }  # fmt: skip


def test_the_level_of_an_interval_over_groups_falls_with_fewer():
    levels = [interval_level(groups) for groups in (FEWEST_GROUPS, 10, 100)]
    assert levels == sorted(levels)
    assert levels[0] > FEWEST_GROUPS**-FEWEST_GROUPS  # the rarest resample
    assert levels[-1] < 0.025
    assert interval_level(10**6) == pytest.approx(0.025, rel=1e-4)


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


def test_the_images_of_a_group_are_left_out_together():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(200) % 23)
    subsets = jackknife_subsets(200, 50, rng, (groups, None))
    left_out = [np.setdiff1d(np.arange(200), real) for real, _ in subsets]
    assert sorted(np.concatenate(left_out)) == list(range(200))
    for (real, fake), out in zip(subsets, left_out, strict=True):
        assert not set(groups[real]) & set(groups[out])
        assert len(fake) == 45
    assert jackknife_subsets(200, 50, rng, (groups % 9, None)) == []


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
