"""Known answers of tables with missing values, against the exact density of a Gaussian."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from submanifold.evaluation.intervals import false_alarm_range
from submanifold.sklearn import ManifoldFlow

pytestmark = pytest.mark.slow
RATE = 0.3


def covariance(columns, correlation):
    return correlation ** abs(np.subtract.outer(np.arange(columns), np.arange(columns)))


COVARIANCE = covariance(5, 0.5)


def gaussian(count, seed, covariance=COVARIANCE):
    rng = np.random.default_rng(seed)
    x = rng.multivariate_normal(np.zeros(len(covariance)), covariance, count)
    return np.where(rng.random(x.shape) < RATE, np.nan, x)


def exact(rows, covariance=COVARIANCE):
    """Log-densities of the observed values."""
    log_probs = []
    for row in rows:
        known = ~np.isnan(row)
        of_known = (
            multivariate_normal(cov=covariance[np.ix_(known, known)]) if known.any() else None
        )
        log_probs.append(of_known.logpdf(row[known]) if known.any() else 0.0)
    return np.array(log_probs)


@pytest.fixture(scope="module")
def flow():
    return ManifoldFlow(random_state=0).fit(gaussian(4000, 0))


def test_the_density_of_observed_values_is_nearly_exact(flow):
    rows = gaussian(1500, 1)
    log_prob = flow._predictor.log_prob(rows)
    assert log_prob.mean() == pytest.approx(exact(rows).mean(), abs=0.2)
    assert log_prob.mean() < exact(rows).mean() + 0.05  # a lower bound
    np.testing.assert_allclose(flow._predictor.log_prob(rows[7:9]), log_prob[7:9], rtol=1e-12)


def test_the_density_of_many_columns_is_close():
    of_many = covariance(40, 0.6)
    flow = ManifoldFlow(random_state=0).fit(gaussian(3000, 0, of_many))
    rows = gaussian(1000, 1, of_many)
    error = exact(rows, of_many).mean() - flow.score(rows)
    assert 0 < error < 3


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


def test_p_values_are_uniform_over_all_rows_and_similar_with_and_without_missing_values(flow):
    """They are valid for all rows together; densities of fewer values vary less."""
    rows = gaussian(4000, 3)
    counts = np.isnan(rows).sum(1)
    p_values = flow.p_values(rows)
    low, high = false_alarm_range(0.05, len(rows), 400)
    assert low < (p_values <= 0.05).mean() < high
    for chosen in (counts == 0, counts > 0):
        assert 0.025 < (p_values[chosen] <= 0.05).mean() < 0.1


def test_samples_have_missing_values_at_the_rate_of_the_data(flow):
    rates = np.isnan(flow.sample(4000, random_state=0)).mean(0)
    assert rates == pytest.approx(RATE, abs=0.1)


def test_values_that_are_missing_where_they_should_not_be_are_found():
    """A blank of b occurs only where a is large; that of a row with a small a is wrong."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 3))
    rows[rows[:, 0] > 1, 1] = np.nan
    flow = ManifoldFlow(random_state=0, steps=100).fit(rows)
    fits = rng.normal(size=(500, 3))
    fits[:, 0] = np.where(rng.random(500) < 0.5, rng.uniform(1.1, 2, 500), fits[:, 0].clip(max=0.9))
    fits[fits[:, 0] > 1, 1] = np.nan
    wrong = fits[fits[:, 0] <= 1]
    wrong[:, 1] = np.nan
    scores = flow._predictor.score(np.concatenate([fits, wrong]))
    is_wrong = np.repeat([0, 1], [len(fits), len(wrong)])
    assert roc_auc_score(is_wrong, -scores["log_prob_mask"]) > 0.95
    assert (scores["p_value_mask"][is_wrong == 0] <= 0.05).mean() < 0.1
