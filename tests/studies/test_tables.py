from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from submanifold.studies.experiments import Experiment
from submanifold.studies.tables import (
    Cell,
    differing_settings,
    over_seeds,
    paper_table,
    readable,
    recipe_name,
    results_table,
)
from submanifold.studies.targets import TARGETS

REPOSITORY = Path(__file__).parents[2]


def measured(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 100}


def run(bpd, mse, **more):
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


def test_a_table_has_the_papers_figures_beside_ours_and_the_difference():
    cells = [
        Cell("DNF", "3072-500-500", [run(4.2, 0.01)]),
        Cell("PR-D", "3072-500", [run(4, 0.03)]),
    ]
    table = results_table(1, cells).set_index(["method", "metric"])
    bpd = table.loc[("DNF", "bpd")]
    assert (bpd["value"], bpd["paper"], bpd["paper_spread"]) == (4.2, 3.98, 0.03)
    assert bpd["difference"] == pytest.approx(0.22)
    assert (bpd["low"], bpd["high"]) == pytest.approx((4.1, 4.3))
    assert (bpd["n_train"], bpd["n_test"], bpd["n_samples"], bpd["seeds"]) == (6000, 800, 1000, 1)
    assert table.loc[("PR-D", "mse"), "paper"] == 0.02
    assert table.loc[("PR-D", "parameters"), "paper"] == 44e6
    assert pd.isna(table.loc[("PR-D", "fid"), "value"])
    assert table.loc[("PR-D", "pca_mse"), "value"] == 0.001


def test_a_table_for_reading_has_a_row_for_each_method():
    table = readable(results_table(1, [Cell("DNF", "3072-500-500", [run(4.2, 0.01)])]))
    row = table.iloc[0]
    assert row["method"] == "DNF"
    assert row["dimensions"] == "3072 → 500 → 500"
    assert row["BPD"] == "4.200 [4.100, 4.300]"
    assert row["BPD, paper"] == "3.98 ± 0.03"
    assert row["BPD, difference"] == "+0.220"
    assert row["parameters"] == "1,000,000"
    assert row["parameters, paper"] == "59,000,000"
    assert row["MSE of PCA"] == "0.00100"
    assert "recall" not in table  # nobody has it


def test_seeds_are_counted_where_there_are_several():
    cells = [
        Cell("DNF", "3072-500-500", [run(4, 0.01), run(4.1, 0.01)]),
        Cell("PR-D", "3072-500", [run(4, 0.01)]),
    ]
    assert list(readable(results_table(1, cells))["seeds"]) == ["2", "1"]
    assert "seeds" not in readable(results_table(1, cells[1:]))


def test_training_images_in_the_samples_place_close_the_table():
    floor = {"precision": measured(0.95, 0.9, 0.97), "kid": measured(0.001), "fid": {"value": None}}
    cells = [
        Cell("DNF", "3072-500-500", [run(4, 0.01, training_images=floor)]),
        Cell("PR-D", "3072-500", [run(4, 0.01, training_images=floor)]),
    ]
    results = results_table(1, cells)
    assert list(results["method"].unique()) == ["DNF", "PR-D", "training images"]
    last = readable(results).iloc[-1]
    assert (last["precision"], last["KID"]) == ("0.95 [0.90, 0.97]", "0.0010")
    assert last["dimensions"] == ""
    assert last["BPD"] == last["MSE"] == last["MSE of PCA"] == "–"


def test_several_seeds_have_the_interval_of_their_mean():
    found = over_seeds([measured(1.0), measured(2.0), measured(6.0)])
    assert found["value"] == 3.0
    # t of 0.975 with 2 degrees of freedom, times 2.6458 / sqrt(3)
    assert found["high"] - 3.0 == pytest.approx(4.30265 * 7**0.5 / 3**0.5, rel=1e-5)
    assert over_seeds([measured(1.0, 0.5, 1.5)]) == {"value": 1.0, "low": 0.5, "high": 1.5}
    same = measured(1.0, 0.5, 1.5)
    assert over_seeds([same, same]) == {"value": 1.0, "low": 0.5, "high": 1.5}
    assert over_seeds([same, measured(1.000001)]) == {"value": 1.0, "low": 0.5, "high": 1.5}
    missing = {"value": None, "low": None, "high": None}
    assert over_seeds([measured(1.0), {"value": None, "why": "no"}]) == missing
    assert over_seeds([None]) == missing


@pytest.mark.parametrize("table", [1, 2, 3, 4, 5])
def test_every_cell_of_the_papers_tables_has_a_recipe_with_its_dimensions(table):
    data = {"path": "somewhere"} if table > 2 else {}
    for dataset, method, dims in paper_table(table)[["dataset", "method", "stage_dims"]].itertuples(
        index=False
    ):
        experiment = Experiment.from_recipe(recipe_name(dataset, method, dims), REPOSITORY)
        if data:
            experiment = experiment.changed("data.path", "somewhere")
        parameters = experiment.parameters
        assert parameters["dataset"] == dataset
        assert parameters["method"] == method.replace("*", "-star")
        stages = [parameters[name]["dim"] for name in sorted(parameters) if "stage_" in name]
        assert dims == "-".join(map(str, [3072, *stages]))


def test_the_controls_of_the_tables_have_recipes_too():
    assert recipe_name("celeba", "Glow", "3072") == "celeba-Glow"
    for number in range(1, 6):
        for need in TARGETS[f"table-{number}"].needs.values():
            Experiment.from_recipe(need.recipe, REPOSITORY)


def test_settings_that_are_not_the_papers_are_found():
    experiments = {
        name: Experiment(name, {"dataset": "photos", "method": name}, REPOSITORY)
        for name in ("PR-D", "H-MM")
    }
    experiments["PR-D"] = experiments["PR-D"].changed("phase_1.reconstruction.delta", 0.7)
    common, some = differing_settings(experiments)
    common, some = common.set_index("setting"), some.set_index("setting")
    assert tuple(common.loc["stage_1.flow.steps"]) == ("[8, 4, 2]", "32")
    assert tuple(common.loc["phase_1.training.learning_rate"]) == ("0.01", "1e-05")
    assert tuple(some.loc["stage_2.flow.hidden"]) == ("512", "null", "H-MM")
    # what was changed on the command line is changed in both
    assert "phase_1.reconstruction.delta" not in {*common.index, *some.index}
    assert "seed" not in {*common.index, *some.index}


def test_a_recipe_that_is_not_there_is_named_with_those_that_are():
    from submanifold.common.errors import UserError

    with pytest.raises(UserError, match=r"There is no recipe .*celeba-H-XX.*celeba-H-MM-1000-500"):
        Experiment.from_recipe("celeba-H-XX", REPOSITORY)


def test_a_changed_experiment_leaves_the_first_one_as_it_is():
    first = Experiment("one", {"stage_1": {"dim": 5}}, REPOSITORY)
    second = first.changed("stage_1.dim", 7).changed("data.size", 16)
    assert first.params == {"stage_1": {"dim": 5}}
    assert second.params == {"stage_1": {"dim": 7}, "data": {"size": 16}}
    assert second.name == "one, stage_1.dim 7, data.size 16"
