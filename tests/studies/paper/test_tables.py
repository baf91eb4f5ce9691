from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from submanifold.runs.experiments import CachedRun
from submanifold.studies.paper.tables import (
    control_cells,
    paper_cells,
    params_of,
    readable,
    results_table,
)

DIMS = {"DNF": "3072-500-500", "PR-D": "3072-500"}


def measured(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 100}


def run(bpd, mse=0.01, **more):
    metrics = {
        "bits_per_dim": measured(bpd, bpd - 0.1, bpd + 0.1),
        "mse": measured(mse, mse / 2, 2 * mse),
        "stage_1_mse": measured(mse / 4),
        "fid": {"value": None, "why": "not measured"},
        "parameters": 1_000_000,
        "baselines": {"pca": {"dim": 500, "mse": measured(0.001)}},
        "counts": {"train": 6000, "test": 800, "samples": 1000},
        "training_images": None,
        **more,
    }
    return SimpleNamespace(load=lambda name: {"metrics": metrics}[name])


def test_results_are_next_to_the_papers_numbers():
    results = results_table(1, DIMS, {"DNF": [run(4.2)], "PR-D": [run(4, 0.03)]})
    table = results.set_index(["method", "metric"])
    bpd = table.loc[("DNF", "bpd")]
    assert (bpd["value"], bpd["paper"], bpd["paper_spread"]) == (4.2, 3.98, 0.03)
    assert (bpd["low"], bpd["high"]) == pytest.approx((4.1, 4.3))
    assert (bpd["n_train"], bpd["n_test"], bpd["n_samples"], bpd["seeds"]) == (6000, 800, 1000, 1)
    assert table.loc[("PR-D", "mse"), "paper"] == 0.02
    assert table.loc[("PR-D", "parameters"), "paper"] == 44e6
    assert pd.isna(table.loc[("PR-D", "fid"), "value"])
    assert table.loc[("PR-D", "pca_mse"), "value"] == 0.001
    row = readable(results).iloc[0].to_dict()
    assert (row["method"], row["dimensions"]) == ("DNF", "3072 → 500 → 500")
    assert row["BPD"] == "4.20 [4.10, 4.30]"
    assert row["BPD, paper"] == "3.98 ± 0.03"
    assert row["parameters, paper"] == "59,000,000"
    assert not {"recall", "seeds"} & set(row)


@pytest.mark.parametrize("table", range(1, 6))
def test_every_cell_of_the_papers_tables_is_valid_and_has_its_dimensions(table):
    for dataset, method, dims in paper_cells(table) + control_cells(table):
        params = params_of(dataset, method, dims)
        path = {"data.path": "somewhere"} if table > 2 else {}
        parameters = CachedRun("", {}, Path.cwd()).with_params(params | path).settings.parameters()
        assert parameters["dataset"] == dataset
        assert parameters["method"] == method.replace("*", "-star")
        if method != "Glow":
            stages = [parameters[name]["dim"] for name in sorted(parameters) if "stage_" in name]
            assert dims == "-".join(map(str, [3072, *stages]))
