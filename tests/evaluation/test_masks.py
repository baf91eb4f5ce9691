"""The density of the mask of missing values: planted rules, and where it is exact."""

import numpy as np
import pytest
from scipy.special import expit, log_expit
from sklearn.metrics import roc_auc_score

from submanifold.evaluation.masks import fit_mask, mask_log_prob

RULES = {
    "large": lambda z: z > 1,
    "extreme": lambda z: abs(z) > 1.2,
}


@pytest.mark.parametrize("name", RULES)
def test_cells_that_are_missing_against_a_rule_are_found(name):
    rng = np.random.default_rng(0)
    x, rule = rng.normal(size=(3000, 6)), RULES[name]
    missing = np.stack([rule(x[:, 0]), rule(x[:, 1])], 1)  # of the columns 4 and 5
    weights = fit_mask(x[:2000], missing[:2000], [4, 5])
    right, wrong = missing[2000:], missing[2000:].copy()
    wrong[:, 0] ^= True
    log_probs = [mask_log_prob(weights, x[2000:], mask, [4, 5]) for mask in (right, wrong)]
    assert roc_auc_score(np.repeat([1, 0], 1000), np.concatenate(log_probs)) > 0.95


def test_the_density_of_a_logistic_rule_is_nearly_exact_and_ignores_missing_values():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20_000, 3))
    missing = rng.random((len(x), 1)) < expit(2 * x[:, :1] - 1)
    weights = fit_mask(x, missing, [2])
    expected = log_expit(np.where(missing[:, 0], 1, -1) * (2 * x[:, 0] - 1))
    np.testing.assert_allclose(mask_log_prob(weights, x, missing, [2]), expected, atol=0.5)
    other = np.where([[False, False, True]], 7.0, x)
    np.testing.assert_array_equal(
        mask_log_prob(weights, other, missing, [2]), mask_log_prob(weights, x, missing, [2])
    )


def test_very_wide_tables_have_no_density_of_the_mask():
    assert len(fit_mask(np.zeros((9, 500)), np.zeros((9, 500), bool), range(500))) == 0
