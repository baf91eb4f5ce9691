import math

import pytest

from submanifold.evaluation.measure import warnings
from submanifold.evaluation.metrics import COMPARED, METRICS, NONE
from submanifold.studies import paper


def test_a_value_is_written_with_its_interval():
    bits = METRICS["bits_per_dim"]
    measured = {"value": 3.74, "low": 3.72, "high": 3.7612, "n": 9}
    assert bits.write(measured) == "3.740 [3.720, 3.761]"
    assert bits.write(measured, signed=True, label=True) == "+3.740 BPD [+3.720, +3.761]"
    assert bits.write({**measured, "low": None}) == "3.740"
    assert bits.write({**measured, "high": math.nan}) == "3.740"
    assert METRICS["parameters"].write(1234567) == "1,234,567"
    assert METRICS["parameters"].write(-1234567, signed=True) == "-1,234,567"


@pytest.mark.parametrize("missing", [None, math.nan, {}, {"value": None}, {"value": math.nan}])
def test_a_value_that_is_missing_is_a_dash_or_the_reason(missing):
    assert METRICS["fid"].write(missing) == NONE
    if isinstance(missing, dict):
        why = "not measured: on a CPU it takes long"
        assert METRICS["fid"].write({**missing, "why": why}) == "not measured"


def test_a_metric_is_found_where_metrics_json_has_it():
    metrics = {"mse": {"value": 1.0}, "baselines": {"pca": {"mse": {"value": 2.0}}}}
    assert METRICS["mse"].read(metrics) == {"value": 1.0}
    assert METRICS["baselines.pca.mse"].read(metrics) == {"value": 2.0}
    assert METRICS["baselines.pca.mse"].read({"baselines": {"pca": {"why": "no"}}}) is None
    assert METRICS["seconds.training"].read(metrics) is None


def test_the_papers_numbers_are_all_of_metrics_in_the_table():
    results = paper.results()
    assert set(results["metric"]) == {"bpd", "mse", "fid", "parameters"} <= COMPARED.keys()
    # table 2, H-MM: an example, as it is printed
    row = results.query("table == 1 and method == 'DNF' and metric == 'mse'").iloc[0]
    assert (row["value"], row["spread"], row["stage_dims"]) == (0.004, 0.0002, "3072-500-500")


def test_warnings_of_trainings_are_those_of_the_run():
    histories = {"phase_1": {"warnings": {}}, "phase_3": {"warnings": {"target": "not reached"}}}
    assert warnings({"inverse_error": 0.0}, histories) == ["phase_3: not reached"]
