"""Known answers of tables with missing values, against the exact density of a Gaussian."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from submanifold.evaluation.intervals import false_alarm_range
from submanifold.sklearn import ManifoldFlow

pytestmark = pytest.mark.slow
COLUMNS, RATE = 5, 0.3
COVARIANCE = 0.5 ** abs(np.subtract.outer(np.arange(COLUMNS), np.arange(COLUMNS)))


def gaussian(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.multivariate_normal(np.zeros(COLUMNS), COVARIANCE, count)
    return np.where(rng.random(x.shape) < RATE, np.nan, x)


def exact(rows):
    """Log-densities of the observed values and of the flags."""
    log_probs = []
    for row in rows:
        known = ~np.isnan(row)
        of_flags = np.where(known, np.log(1 - RATE), np.log(RATE)).sum()
        covariance = COVARIANCE[np.ix_(known, known)]
        of_values = multivariate_normal(cov=covariance).logpdf(row[known]) if known.any() else 0.0
        log_probs.append(of_flags + of_values)
    return np.array(log_probs)


@pytest.fixture(scope="module")
def flow():
    return ManifoldFlow(random_state=0).fit(gaussian(4000, 0))


def test_the_density_of_observed_values_and_flags_is_nearly_exact(flow):
    rows = gaussian(1500, 1)
    log_prob = flow._predictor.log_prob(rows)
    assert log_prob.mean() == pytest.approx(exact(rows).mean(), abs=0.2)
    assert log_prob.mean() < exact(rows).mean() + 0.05  # a lower bound
    np.testing.assert_array_equal(flow._predictor.log_prob(rows[7:9]), log_prob[7:9])


def test_changed_values_are_found_as_by_the_exact_density(flow):
    rows = gaussian(1500, 1)
    rng = np.random.default_rng(2)
    known = ~np.isnan(rows)
    changed, known = rows[known.any(1)], known[known.any(1)]
    column = (rng.random(changed.shape) * known).argmax(1)
    changed[np.arange(len(changed)), column] += rng.choice([-2, 2], len(changed))
    both, is_changed = np.concatenate([rows, changed]), np.repeat([0, 1], [len(rows), len(changed)])
    area = roc_auc_score(is_changed, -flow.decision_function(both))
    assert area > roc_auc_score(is_changed, -exact(both)) - 0.015


def test_p_values_of_rows_with_and_without_missing_values_are_uniform(flow):
    rows = gaussian(4000, 3)
    counts = np.isnan(rows).sum(1)
    p_values = flow.p_values(rows)
    for chosen in (counts == 0, counts > 0, counts >= 0):
        low, high = false_alarm_range(0.05, chosen.sum(), 400)
        assert low < (p_values[chosen] <= 0.05).mean() < high


def test_samples_have_missing_values_at_the_rate_of_the_data(flow):
    rates = np.isnan(flow.sample(4000, random_state=0)).mean(0)
    # samples are on a manifold, whose rates are those of the data roughly
    assert rates == pytest.approx(RATE, abs=0.12)


def test_values_that_are_missing_where_they_should_not_be_are_found():
    """A blank of b occurs only where a is large; the flag of a row with a small a is wrong."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 3))
    rows[rows[:, 0] > 1, 1] = np.nan
    flow = ManifoldFlow(random_state=0).fit(rows)
    fits = rng.normal(size=(500, 3))
    fits[:, 0] = np.where(rng.random(500) < 0.5, rng.uniform(1.1, 2, 500), fits[:, 0].clip(max=0.9))
    fits[fits[:, 0] > 1, 1] = np.nan
    wrong = fits[fits[:, 0] <= 1]
    wrong[:, 1] = np.nan
    scores = flow.decision_function(np.concatenate([fits, wrong]))
    assert roc_auc_score(np.repeat([1, 0], [len(fits), len(wrong)]), scores) > 0.95
