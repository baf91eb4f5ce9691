"""Contributions of columns to the anomaly of a row, where the answer is known."""

import numpy as np
import pytest

from submanifold.evaluation.attribution import column_contributions

RNG = np.random.default_rng(0)
COVARIANCE = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
USUAL = RNG.multivariate_normal(np.zeros(3), COVARIANCE, 5000)


def energy(x):
    return 0.5 * np.einsum("ni,ij,nj->n", x, np.linalg.inv(COVARIANCE), x)


def test_an_extreme_value_has_the_largest_contribution_and_a_usual_value():
    rows = np.array([[0.1, 0.0, 6.0], [0.0, 0.1, 0.2]])
    found, values = column_contributions(energy, rows, USUAL)
    assert found[0].argmax() == 2
    assert found[0, 2] == pytest.approx(18, abs=0.1)
    assert abs(values[0, 2]) < 0.2
    assert found[0, :2].max() < 0.1 > found[1].max()


def test_an_unusual_combination_of_usual_values_has_two_contributions():
    found, values = column_contributions(energy, np.array([[1.5, -1.5, 0.0]]), USUAL)
    assert found[0, :2].min() > 20
    assert found[0, 2] < 0.1
    assert values[0, 0] == pytest.approx(-1.5, abs=0.4)
    assert values[0, 1] == pytest.approx(1.5, abs=0.4)


def test_infinite_scores_have_a_large_contribution():
    def score(x):
        return np.where(x[:, 0] > 5, np.inf, np.square(x).sum(1))

    found, _ = column_contributions(score, np.array([[9.0, 0.0]]), USUAL[:, :2])
    assert found[0, 0] > 1e20
    assert found[0, 1] == 0


def test_values_that_are_equal_to_the_user_are_not_tried():
    """A dequantized integer is not replaced by another dequantization of the same integer."""
    rows = np.array([[0.9, 1.5]])
    found, values = column_contributions(
        lambda x: np.square(x).sum(1), rows, np.random.default_rng(0).uniform(0, 2, (500, 2)),
        lambda a, b: np.floor(a) == np.floor(b),
    )  # fmt: skip
    assert found[0, 0] == 0
    assert values[0, 0] == 0.9
    assert np.floor(values[0, 1]) == 0
