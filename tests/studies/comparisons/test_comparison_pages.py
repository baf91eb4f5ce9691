from types import SimpleNamespace

import pandas as pd
import pytest

from submanifold.studies.comparisons import related
from submanifold.studies.reproduce import TARGETS


def interval(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def point_measures(nearest=None, divergence=None):
    values = {"divergence": divergence, "nearest_distance": nearest, "data_distance": 0.1}
    found = {name: interval(value, 0.001) for name, value in values.items() if value is not None}
    return found | {"seconds": {"value": 10.0}}


RELATED = {
    "circle: nested (ours)": point_measures(0.06, 0.09),
    "circle: density-first (ours)": point_measures(0.05, 0.08),
    "circle: two charts": point_measures(0.01, 0.02),
    "circle: Trumpet": point_measures(0.02),
    "circle: SoftFlow": point_measures(None, 0.01),
    "paraboloid: nested (ours)": point_measures(0.01, 0.02),
    "paraboloid: density-first (ours)": point_measures(0.015, 0.03),
    "paraboloid: two charts": point_measures(0.02, 0.01),
}


def runs():
    return {name: [SimpleNamespace(name=name)] for name in RELATED}


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    monkeypatch.setattr(related, "measure_one", lambda run, images: RELATED[run.name])


def content(record=None):
    return TARGETS["related"].make(runs(), record)


def test_records_fill_in_for_missing_runs_only(tmp_path):
    measured = content().data
    measured.to_csv(tmp_path / "record.csv", index=False)
    record = pd.read_csv(tmp_path / "record.csv")
    again = content(record.assign(value=9.9))
    pd.testing.assert_frame_equal(again.data, measured, check_dtype=False)
    assert not any("measured earlier" in note for note in again.notes)
    more = content(record.assign(seed=record["seed"] + 5))
    assert len(more.data) == 2 * len(measured)
    assert f"{len(measured)} results were measured earlier" in more.notes[-1]


def test_related_counts_manifolds_and_densities_below_the_thresholds():
    tables = content().tables
    rows = tables["What each system finds, and its cost"].set_index("system").to_dict("index")
    ours, charts = rows["nested (ours)"], rows["two charts"]
    assert (ours["manifolds found"], ours["not found"]) == ("1 of 2", "circle")
    assert ours["densities found"] == "2 of 2"
    assert (charts["manifolds found"], charts["not found"]) == ("2 of 2", "")
    assert rows["Trumpet"]["densities found"] == "not available"
    assert rows["SoftFlow"]["manifolds found"] == "not available"
    circle = tables["circle"].set_index("system")
    assert circle.loc["SoftFlow", "nearest projection to the true one"] == "–"
    assert circle.loc["Trumpet", "nats above the truth"] == "–"


def test_what_has_no_measurement_is_not_found(monkeypatch):
    monkeypatch.setitem(RELATED, "circle: PIE", point_measures())
    table = content().tables["What each system finds, and its cost"]
    counts = table.set_index("system").loc["PIE", ["manifolds found", "densities found"]]
    assert counts.tolist() == ["0 of 1", "0 of 1"]
