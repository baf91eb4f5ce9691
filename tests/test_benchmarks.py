"""Parts of the benchmarks that compare with other methods, against closed forms."""

import numpy as np
import pytest

from benchmarks.anomalies import make_split


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
