"""Parts of the benchmarks that compare with other methods, against closed forms."""

import numpy as np
import pytest
import scipy
import torch
from click.testing import CliRunner

from benchmarks import misspecification
from benchmarks.adbench import make_split


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


def test_conformal_p_values_of_the_exact_density_are_uniform():
    """And those of another density, or of contaminated observations, are not."""
    torch.manual_seed(0)
    x = misspecification.simulate(3, 4000)
    test = misspecification.exact(x, 0)

    def score(x):
        return test(x)["exact density"]

    held_out = np.sort(score(x[:1000]).reshape(10, -1))
    uniform, shifted = (
        float(
            misspecification.uniformity(
                [
                    (np.searchsorted(known, p) + 1) / (len(known) + 1)
                    for known, p in zip(held_out, score(new).reshape(10, -1), strict=True)
                ]
            )
        )
        for new in (x[1000:], misspecification.contaminate(x[1000:], "shift", 1))
    )
    assert uniform > 0.05 > 1e-6 > shifted
    assert scipy.stats.kstest(score(x), "uniform").pvalue > 0.05


def test_contaminations_change_only_what_they_say():
    torch.manual_seed(0)
    x = misspecification.simulate(3, 20_000)
    cases = {"mixed": 0.5, "tails": 10, "shift": 1}
    rows = {kind: misspecification.contaminate(x, kind, level) for kind, level in cases.items()}
    correlation = {kind: np.corrcoef(of_kind.T)[0, 1] for kind, of_kind in rows.items()}
    expected = np.corrcoef(x.T)[0, 1]
    assert correlation["mixed"] == pytest.approx(expected / 2, abs=0.03)
    assert correlation["tails"] == pytest.approx(expected, abs=0.03)
    for kind, mean, variance in (("mixed", 0, 1), ("tails", 0, 10 / 8), ("shift", 1, 1)):
        scaled = (rows[kind] - x.mean(0)) / x.std(0)
        assert scaled.mean(0).numpy() == pytest.approx(mean, abs=0.03)
        assert scaled.var(0).numpy() == pytest.approx(variance, rel=0.05)


def test_the_comparison_with_sbi_ends_in_one_message_without_it(monkeypatch):
    monkeypatch.setattr(misspecification.importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(misspecification.main)
    expected = "Error: sbi: expected the package, got none. Run: pip install sbi\n"
    assert (result.exit_code, result.output) == (1, expected)
