"""Known answers of selections, and of bounds on their false discoveries."""

import numpy as np
import pytest

from submanifold.evaluation.discoveries import blocking, false_discovery_bound, select


@pytest.mark.parametrize(
    ("p_values", "selected"),
    [
        ([0.9, 0.03, 0.04, 0.5], [1, 2]),  # the largest p(k) of at most k / 40 decides: 0.04, k = 2
        ([0.03, 0.03, 0.08, 0.09], [0, 1, 2, 3]),
        ([0.026, 0.2, 0.3, 0.4], []),
    ],
)
def test_a_selection_steps_up(p_values, selected):
    assert np.flatnonzero(select(np.array(p_values), 0.1)).tolist() == selected


@pytest.mark.parametrize(("planted", "expected"), [(0, 0), (5, 5), (20, 20), (21, 0)])
def test_few_calibration_events_block_a_selection(planted, expected):
    """Ten of 1,000 events are beyond all 999 normal ones: 1/1000 is 10% of 10/1000."""
    normal = np.r_[np.zeros(999), np.full(planted, 9.0)]
    new = np.r_[np.zeros(990), np.full(10, 8.0)]
    larger = (normal >= new[:, None]).sum(1)
    p_values = (1 + larger) / (len(normal) + 1)
    assert blocking(p_values, 0.1, len(normal)) == expected
    assert select(p_values, 0.1).any() == (planted == 0)


@pytest.mark.parametrize(("calibrated", "normal", "anomalies"), [(99, 60, 20), (999, 400, 60)])
def test_false_discoveries_exceed_their_bound_in_at_most_5_percent(calibrated, normal, anomalies):
    rng = np.random.default_rng(calibrated)
    exceeded, bounds, selected = [], [], []
    for _ in range(1000):
        known = np.sort(rng.normal(size=calibrated))
        new = rng.normal(size=normal + anomalies)
        new[normal:] += 4
        larger = calibrated - np.searchsorted(known, new)
        p_values = (1 + larger) / (calibrated + 1)
        chosen = select(p_values, 0.2)
        bounds.append(false_discovery_bound(p_values, 0.2, calibrated))
        exceeded.append(chosen[:normal].sum() > bounds[-1])
        selected.append(chosen.sum())
    assert np.mean(exceeded) <= 0.05
    assert np.mean(bounds) < 0.75 * np.mean(selected), "not too conservative either"


def test_the_bound_of_the_smallest_p_values_is_that_of_one_level():
    """Of 50 normal events none has p = 1/1000 with probability 0.95: mean number 0.05."""
    p_values = np.array([0.001] * 10 + [0.9] * 40)
    assert false_discovery_bound(p_values, 0.005, 999) in (1, 2)  # levels up to 5/1000
    assert false_discovery_bound(np.full(5, 0.5), 0.1, 99) == 0, "nothing is selected"
