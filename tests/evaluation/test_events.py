"""The table of measured events: densities and p-values, gaps between splits, false alarms."""

import numpy as np
import pandas as pd
import pytest
import scipy
import torch

from submanifold import Predictor
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.baselines import fit_baselines
from submanifold.evaluation.calibration import false_alarms
from submanifold.evaluation.events import (
    generalization_gap,
    group_numbers,
    measure_events,
    of_split,
    summarize,
)
from submanifold.evaluation.intervals import false_alarm_range, proportion_interval
from submanifold.evaluation.measure import measure
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage

RNG = np.random.default_rng(0)


def gap_of(table):
    by_split = table.groupby("split", sort=False)
    return generalization_gap({split: summarize(rows, "bits_per_dim") for split, rows in by_split})


def scored(shift, groups=200):
    tables = []
    for split, offset in (("train", 0.0), ("valid", shift), ("test", shift)):
        group = np.repeat(np.arange(groups), 400 // groups)
        bits = 3 + offset + 0.2 * RNG.standard_normal(groups)[group] + RNG.normal(0, 0.01, 400)
        tables.append(pd.DataFrame({"split": split, "group": group, "bits_per_dim": bits}))
    return pd.concat(tables)


@pytest.mark.parametrize("groups", [400, 200, 40])
def test_the_gap_has_an_interval_over_groups(groups):
    assert (group_numbers(scored(0, groups)[:400]) is None) == (groups == 400)
    gap = gap_of(scored(0.3, groups))
    error = 0.2 * np.sqrt(2 / groups)
    assert gap["low"] < 0.3 < gap["high"]
    assert (gap["high"] - gap["low"]) / 2 == pytest.approx(1.96 * error, rel=0.25)
    few = gap_of(scored(0.3, 4))
    assert few["low"] is few["high"] is None


def test_false_alarms_add_up():
    p_values = np.linspace(0.004, 1, 250)
    found = false_alarms(p_values, calibrated=249)
    assert [row["rate"] for row in found] == [0.1, 0.05, 0.01]
    for row in found:
        assert row["flagged"] == (p_values <= row["rate"]).sum()
        assert row["observed"]["value"] == row["flagged"] / 250
        exact = scipy.stats.binomtest(row["flagged"], 250).proportion_ci()
        assert (row["observed"]["low"], row["observed"]["high"]) == pytest.approx(exact)
        low, high = false_alarm_range(row["rate"], 250, 249)
        assert row["expected"] == {"low": low, "high": high}
    groups = np.arange(250) // 5
    for row in false_alarms(p_values, 249, groups):
        low, high = false_alarm_range(row["rate"], 50, 249)
        assert row["expected"] == {"low": low, "high": high}
    rates = [row["rate"] for row in false_alarms(p_values, 249, smallest_p_value=0.03)]
    assert rates == [0.1, 0.05], "no p-value is 1%"


@pytest.mark.parametrize(
    ("calibrated", "count", "rate"), [(20, 1000, 0.1), (99, 500, 0.05), (999, 50, 0.01)]
)
def test_false_alarms_of_normal_events_are_in_their_range(calibrated, count, rate):
    rng = np.random.default_rng(0)
    fractions = []
    for _ in range(1000):
        normal, new = rng.normal(size=calibrated), rng.normal(size=count)
        above = calibrated - np.searchsorted(np.sort(normal), new)
        fractions.append(((1 + above) / (calibrated + 1) <= rate).mean())
    low, high = false_alarm_range(rate, count, calibrated)
    inside = np.mean([low <= fraction <= high for fraction in fractions])
    assert inside > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 1000)
    assert np.mean(np.array(fractions) > high) < 0.025 + 3 * np.sqrt(0.025 / 1000)
    narrower = np.mean([low + 1 / count <= each <= high - 1 / count for each in fractions])
    assert narrower < 0.95 or count * rate < 1, "not wider than necessary"


def test_proportions_of_groups_have_equal_weights_and_wider_intervals():
    group = np.repeat(np.arange(20), [1] * 10 + [19] * 10)
    events = group < 5
    found = proportion_interval(events, group)
    assert found["value"] == 0.25
    assert (found["n"], found["groups"]) == (200, 20)
    exact = scipy.stats.binomtest(5, 20).proportion_ci()
    assert (found["low"], found["high"]) == pytest.approx(exact, abs=0.02)
    none = proportion_interval(np.zeros(200, bool), group)
    assert (none["low"], none["high"]) == (0, pytest.approx(1 - 0.025 ** (1 / 20)))
    single = proportion_interval(np.ones(3, bool), np.zeros(3))
    assert (single["low"], single["high"]) == (pytest.approx(0.025), 1)


def test_the_interval_of_the_gap_is_that_of_a_difference():
    train = {"value": 1.0, "low": 0.7, "high": 1.1}
    test = {"value": 3.0, "low": 2.6, "high": 3.05}
    gap = generalization_gap({"train": train, "test": test})
    assert gap["value"] - gap["low"] == pytest.approx(np.hypot(0.4, 0.1))
    assert gap["high"] - gap["value"] == pytest.approx(np.hypot(0.05, 0.3))


def test_densities_of_rows_are_in_the_units_of_the_table():
    """Of columns whose scales are far from 1."""
    rng = np.random.default_rng(0)
    tables = {
        split: pd.DataFrame(rng.normal(size=(50, 2)) * [1e3, 0.2], columns=["a", "b"])
        for split in ("train", "valid", "test")
    }
    preprocessor = Preprocessor.fit(tables["train"])
    model = Hierarchy([Stage(RealNVP(2, 2), 1)]).eval()
    model = model.with_facts(data={"table": preprocessor.to_dict()})
    arrays = {split: preprocessor.transform(table) for split, table in tables.items()}
    table = measure_events(model, arrays)
    for split, scores in table.groupby("split"):
        nll = -Predictor(model).log_prob(tables[split])
        np.testing.assert_allclose(scores["nll"], nll, rtol=1e-4, atol=1e-4)
        if split == "test":
            expected = nll.mean()
    baselines = fit_baselines(**arrays)[0]
    measured = measure(
        model, of_split(table, "test"), arrays["test"], baselines, 0.0, 1, torch.device("cpu")
    )
    assert measured["nll"]["value"] == pytest.approx(expected, rel=1e-4)
