from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from submanifold.studies.experiments import CachedRun
from submanifold.studies.paper.tables import (
    config_name,
    control_cells,
    differing_settings,
    paper_cells,
    readable,
    results_table,
)
from submanifold.studies.seeds import over_seeds

DIMS = {"DNF": "3072-500-500", "PR-D": "3072-500"}


def measured(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 100}


def run(bpd, mse=0.01, **more):
    metrics = {
        "bits_per_dim": measured(bpd, bpd - 0.1, bpd + 0.1),
        "mse": measured(mse, mse / 2, 2 * mse),
        "stage_1_mse": measured(mse / 4),
        "fid": {"value": None, "why": "not measured"},
        "sliced_wasserstein": measured(200.0),
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
    assert bpd["difference"] == pytest.approx(0.22)
    assert (bpd["low"], bpd["high"]) == pytest.approx((4.1, 4.3))
    assert (bpd["n_train"], bpd["n_test"], bpd["n_samples"], bpd["seeds"]) == (6000, 800, 1000, 1)
    assert table.loc[("PR-D", "mse"), "paper"] == 0.02
    assert table.loc[("PR-D", "parameters"), "paper"] == 44e6
    assert pd.isna(table.loc[("PR-D", "fid"), "value"])
    assert table.loc[("PR-D", "pca_mse"), "value"] == 0.001
    row = readable(results).iloc[0].to_dict()
    assert (row["method"], row["dimensions"]) == ("DNF", "3072 → 500 → 500")
    assert row["BPD"] == "4.20 [4.10, 4.30]"
    assert (row["BPD, paper"], row["BPD, difference"]) == ("3.98 ± 0.03", "+0.220")
    assert row["parameters, paper"] == "59,000,000"
    assert not {"recall", "seeds"} & set(row)


def test_training_images_as_samples_are_the_last_row():
    floor = {"precision": measured(0.95, 0.9, 0.97), "kid": measured(0.001), "fid": {"value": None}}
    runs = {"DNF": [run(4, training_images=floor), run(4.1)], "PR-D": [run(4)]}
    table = readable(results_table(1, DIMS, runs))
    assert list(table["method"]) == ["DNF", "PR-D", "training images"]
    assert list(table["seeds"]) == ["2", "1", "–"]
    last = table.iloc[-1]
    assert (last["precision"], last["KID"]) == ("0.950 [0.900, 0.970]", "0.0010")
    assert last["BPD"] == last["MSE, encoder projection"] == last["MSE of PCA"] == "–"


def test_over_seeds_computes_a_t_interval_of_different_values():
    found = over_seeds([measured(1.0), measured(2.0), measured(6.0)])
    assert found["value"] == 3.0
    # t of 0.975 with 2 degrees of freedom, times 2.6458 / sqrt(3)
    assert found["high"] - 3.0 == pytest.approx(4.30265 * 7**0.5 / 3**0.5, rel=1e-5)
    same = measured(1.0, 0.5, 1.5)
    for equal in ([same], [same, same], [same, measured(1.000001)]):
        assert over_seeds(equal) == {"value": 1.0, "low": 0.5, "high": 1.5}
    for missing in ([None], [same, {"value": None, "why": "no"}]):
        assert over_seeds(missing) == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("table", range(1, 6))
def test_every_cell_of_the_papers_tables_has_a_config_with_its_dimensions(table):
    for dataset, method, dims in paper_cells(table) + control_cells(table):
        each = CachedRun.from_config(config_name(dataset, method, dims), Path.cwd())
        parameters = each.changed("data.path", "somewhere" if table > 2 else None)
        parameters = parameters.settings.parameters()
        assert parameters["dataset"] == dataset
        assert parameters["method"] == method.replace("*", "-star")
        if method != "Glow":
            stages = [parameters[name]["dim"] for name in sorted(parameters) if "stage_" in name]
            assert dims == "-".join(map(str, [3072, *stages]))


def test_settings_that_differ_from_the_papers_are_found():
    runs = {
        name: CachedRun(name, {"dataset": "photos", "method": name}, Path.cwd())
        for name in ("PR-D", "H-MM")
    }
    runs["PR-D"] = runs["PR-D"].changed("phase_1.reconstruction.delta", 0.7)
    common, some = (each.set_index("setting") for each in differing_settings(runs).values())
    assert tuple(common.loc["stage_1.flow.steps"]) == ("[8, 4, 2]", "32")
    assert tuple(common.loc["stage_1.training.learning_rate"]) == ("0.01", "1e-05")
    assert tuple(some.loc["stage_2.flow.hidden"]) == ("512", "null", "H-MM")
    # changes to the runs are made to both sides
    assert "stage_1.reconstruction.delta" not in {*common.index, *some.index}
    assert "seed" not in {*common.index, *some.index}
