"""Parts of the benchmarks that compare with other methods, against closed forms."""

import numpy as np
import pytest

from benchmarks.anomalies import make_split
from benchmarks.selection import mix, oracle_power


@pytest.mark.parametrize("protocol", ["semi", "unsup"])
@pytest.mark.parametrize(("anomalies", "expected"), [(3, 3), (30, 10)])
def test_a_subsample_keeps_rare_anomalies(protocol, anomalies, expected):
    """Without anomalies there is no AUROC."""
    y = np.arange(10_000) < anomalies
    for seed in range(5):
        split = make_split(np.arange(10_000.0)[:, None], y, protocol, seed, 100)
        assert split.anomaly.sum() == expected
        assert len(split.test) + (0 if split.same else len(split.train)) == 100
        assert len(np.unique(split.test)) == len(split.test)


@pytest.mark.parametrize(
    ("scores", "level", "expected"),
    [
        ([5, 4, 3, 2, 1], 0.1, 2 / 3),
        ([5, 4, 3, 2, 1], 0.25, 1.0),  # 3 of the 4 highest are anomalies
        ([5, 5, 5, 2, 1], 0.1, 0.0),  # equal scores are selected together
        ([5, 5, 5, 2, 1], 0.35, 1.0),
    ],
)
def test_the_oracle_selects_the_most_rows_with_few_normal_ones(scores, level, expected):
    anomaly = np.array([True, True, False, True, False])
    order = [3, 0, 4, 2, 1]
    power = oracle_power(anomaly[order], np.array(scores)[order], level)
    assert power == pytest.approx(expected)


def test_a_mixture_has_the_fraction_of_anomalies():
    anomaly = np.arange(1000) < 100
    numbers = mix(anomaly, 0.05, np.random.default_rng(0))
    assert len({*numbers}) == len(numbers) >= 900
    assert anomaly[numbers].mean() == pytest.approx(0.05, abs=0.001)
