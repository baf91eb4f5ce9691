"""Contributions of columns to the anomaly of a row, where the answer is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from strategies import affine
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.attribution import (
    LEVELS,
    column_contributions,
    column_quantiles,
    explain,
    explain_rows,
)
from submanifold.evaluation.events import measure_events
from submanifold.flows import RealNVP, make_conditional
from submanifold.models import Hierarchy, Stage

RNG = np.random.default_rng(0)
COVARIANCE = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
USUAL = np.quantile(RNG.multivariate_normal(np.zeros(3), COVARIANCE, 5000), LEVELS, axis=0)


def energy(x):
    return 0.5 * np.einsum("ni,ij,nj->n", x, np.linalg.inv(COVARIANCE), x)


def test_an_extreme_value_has_the_largest_contribution_and_a_usual_value():
    row = np.array([0.1, 0.0, 6.0])
    contributions, values = column_contributions(energy, row, USUAL, np.array)
    assert contributions[2] == pytest.approx(18, abs=0.1)
    assert abs(values[2]) < 0.2
    assert contributions[:2].max() < 0.1


def test_values_that_are_equal_to_the_user_are_not_tried():
    """A dequantized integer is not replaced by another dequantization of the same integer."""
    quantiles = np.stack([LEVELS, LEVELS], 1) * 2
    contributions, values = column_contributions(
        lambda x: np.square(x).sum(1), np.array([0.9, 1.5]), quantiles, np.floor
    )
    assert contributions[0] == 0
    assert values[0] == 0.9
    assert np.floor(values[1]) == 0


def test_values_are_replaced_by_quantiles_of_training_rows():
    """Of test rows whose columns are all larger; the most anomalous ones are explained."""
    table = pd.DataFrame(RNG.normal(size=(300, 2)), columns=["a", "b"])
    preprocessor = Preprocessor.fit(table)
    model = Hierarchy([Stage(affine(torch.eye(2)), 1)])
    model = model.with_facts(data={"table": preprocessor.to_dict()})
    train, test = preprocessor.transform(table), preprocessor.transform(table[:40] + 7)
    test = replace(test, rows=np.arange(100, 140))
    scored = measure_events(model, {"train": train, "test": test})
    explained = explain_rows(model, train, test, scored, "cpu")
    worst = np.argsort(-np.square(test.x).sum(1), kind="stable")[:16]
    values = explained.pivot(index="row", columns="column", values="value").astype(float)
    expected = (table[:40] + 7).loc[worst].sort_index()
    np.testing.assert_allclose(values, expected, rtol=0.01)
    assert (explained["usual"].astype(float).abs() < 3.5).all()  # such as in training rows
    assert explained["row"].unique().tolist() == (100 + worst).tolist()


def test_missing_values_do_not_contribute():
    table = pd.DataFrame(RNG.normal(size=(400, 2)), columns=["a", "b"])
    table.loc[RNG.random(400) < 0.1, "b"] = np.nan
    preprocessor = Preprocessor.fit(table)
    flow = make_conditional(RealNVP(2), columns=1)  # starts as the identity
    model = Hierarchy([Stage(flow, 2)]).with_facts(data={"table": preprocessor.to_dict()})
    quantiles = column_quantiles(preprocessor.transform(table).x)
    rows = preprocessor.transform(pd.DataFrame({"a": [3.0, 0.1], "b": [np.nan, 9]}))
    rows.x[0, 1] = 5  # an extreme draw of the noise
    explained = explain(model, rows, quantiles).set_index(["number", "column"])
    assert explained["value"].tolist() == ["3", "missing", "9", "0.1"]
    assert explained["contribution"][0, "b"] == 0
    assert explained["contribution"][0, "a"] > 1
    assert explained["contribution"][1, "b"] > 10
    assert "missing" not in explained["usual"].drop((0, "b")).tolist()
