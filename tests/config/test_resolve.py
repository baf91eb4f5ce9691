"""From tables and choices to one experiment."""

import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from small_methods import read_tables

from submanifold.common.errors import UserError
from submanifold.common.settings import flatten
from submanifold.config.keys import artifact_keys
from submanifold.config.merge import find_data, format_params, parse_params
from submanifold.config.resolve import default_method, packaged_tables
from submanifold.config.resolve import resolve as select
from submanifold.config.schema import effective
from submanifold.config.validate import validate

BASE = packaged_tables()


@pytest.fixture
def tables():
    return read_tables()


def resolve(parameters):
    """Select an experiment and check it, as a run does."""
    experiment = select(parameters)
    validate(experiment)
    return experiment


def trained(experiment):
    return [phase.stages for phase in experiment.phases.values()]


def test_the_input_noise_is_that_of_the_last_training_that_starts_at_the_data(tables):
    tables["methods"]["two"]["phases"] = {
        "first": {"stages": 1, "input_noise": 0.1},
        "again": {"stages": [1, 2], "input_noise": 0.2},
        "second": {"stages": 2, "input_noise": 0.3},
    }
    assert resolve(tables).input_noise == 0.2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": "digits"}, "dataset: expected a table with .*, got digits"),
        ({"method": "H-MM"}, "method: expected one whose phase density trains all with .* H-MM"),
        ({"training": {"minutes": 3}}, "training.minutes: expected null with .*, got 3.0"),
        ({"ood": __file__}, "ood: expected null with .*, got .*test_resolve.py"),
        ({"data": {"condition": ["age"]}}, "data.condition: expected null with .*, got columns"),
    ],
)
def test_folds_calibrate_models_of_tables_only(changed, message):
    table = {**BASE, "dataset": "diabetes", "calibration": "cross"}
    assert resolve(table).calibration == "cross"
    with pytest.raises(UserError, match=f"^{message}. Change either, or set calibration=split"):
        resolve({**table, **changed})


def test_a_flow_of_another_kind_takes_its_own_defaults(tables):
    tables["methods"]["two"]["stage_2"]["flow"] = {"type": "realnvp", "couplings": 8}
    tables["stage_2"] = {"flow": {"type": "affine"}}
    assert resolve(tables).parameters()["stage_2"]["flow"] == {"type": "affine"}
    tables["stage_2"] = {"flow": {"type": "realnvp", "hidden": 5}}
    flow = resolve(tables).parameters()["stage_2"]["flow"]
    assert (flow["couplings"], flow["hidden"]) == (8, 5)


def test_user_settings_override_entries(tables):
    given = {
        "data": {"counts": {"train": 5}},
        "stage_1": {"flow": {"width": 6}},
        "stage_3": {"dim": 4, "flow": {"type": "affine"}},
        "first": {"reconstruction": {"weight": 7.0}, "training": {"clip": 0.5}},
    }
    chosen, plain = resolve({**tables, **given}).parameters(), resolve(tables).parameters()
    assert chosen["data"] == {
        **plain["data"],
        "counts": {"train": 5, "valid": None, "test": None},
    }
    assert chosen["stage_1"]["flow"] == {**plain["stage_1"]["flow"], "width": 6}
    assert chosen["stage_1"]["dim"] == 20
    assert chosen["stage_2"] == plain["stage_2"]
    assert chosen["stage_3"]["flow"] == {"type": "affine"}
    assert chosen["first"]["reconstruction"]["weight"] == 7.0
    assert chosen["first"]["training"] == {**plain["first"]["training"], "clip": 0.5}
    assert chosen["second"] == plain["second"]


def test_an_added_stage_gets_a_phase(tables):
    experiment = resolve({**tables, "stage_3": {"dim": 4, "flow": {"type": "affine"}}})
    assert trained(experiment) == [(1,), (2,), (3,)]
    experiment = resolve({**tables, "stage_3": {"dim": 4, "training": {"steps": 3}}})
    assert [phase.training.steps for phase in experiment.phases.values()] == [7, 9, 3]


@pytest.mark.parametrize("stages", [3, [1, 3], True])
def test_a_phase_trains_consecutive_stages(tables, stages):
    with pytest.raises(UserError, match=r"^second\.stages: expected .* stages 1 to 2, got"):
        resolve({**tables, "second": {"stages": stages}})


def test_the_input_of_a_phase_comes_from_the_last_phase_that_changed_it(tables):
    def select(*trained):
        tables["methods"]["own"] = {
            "stage_1": {"flow": {"type": "glow"}, "dim": 20},
            **{f"stage_{n}": {"dim": 20 - n} for n in (2, 3)},
            "phases": {f"p{n}": {"stages": list(each)} for n, each in enumerate(trained, start=1)},
        }
        return resolve({**tables, "method": "own"})

    def sources(*trained):
        return [source and tuple(source) for source in select(*trained).sources.values()]

    assert sources((1, 2, 3)) == [None]
    assert sources((1,), (2,), (3,)) == [None, ("p1", 1), ("p2", 2)]
    assert sources((1,), (1,), (2,), (2, 3)) == [None, None, ("p2", 1), ("p2", 1)]
    assert sources((1, 2), (3,), (1,), (3,)) == [None, ("p1", 2), None, ("p3", 2)]
    assert sources((1, 2, 3), (3,), (2,)) == [None, ("p1", 2), ("p1", 1)]
    keys = artifact_keys(select((1, 2), (3,), (2,)), Path())
    assert keys["p2.u"] != keys["p3.u"], "both begin at phase 1, at two places"


def test_a_path_comes_before_a_dataset_of_the_same_name(tables, tmp_path, monkeypatch):
    """For the data of `train` and for `ood`."""
    monkeypatch.chdir(tmp_path)
    tables["datasets"]["mnist"] = {"source": "mnist"}
    chosen = {**tables, "ood": "mnist"}
    assert find_data("DATA", "mnist", tables["datasets"]) == "mnist"
    assert resolve(chosen).ood_data.source == "mnist"
    Path("mnist").mkdir()
    assert find_data("DATA", "mnist", tables["datasets"]) == Path("mnist")
    assert resolve(chosen).ood_data.source == "folder"
    with pytest.raises(
        UserError, match=r"^DATA: expected an existing folder .* Did you mean mnist"
    ):
        find_data("DATA", "mnits", tables["datasets"])
    with pytest.raises(UserError, match=r"^DATA: expected an existing .* got ~nosuchuser/mnist"):
        find_data("DATA", "~nosuchuser/mnist", tables["datasets"])


@pytest.mark.parametrize(
    "values",
    [
        {"charts": None, "rotated": True, "seed": 3, "training.minutes": 0.5},
        {"data.labels": [0, 1], "data.drop": ["a, b", "c=d"], "data.path": "~/some pictures/x.zip"},
        {"name": "None", "method": "null", "data.path": "a,seed=1", "ood": "1e5", "device": ""},
    ],
)
def test_params_are_written_as_they_are_read(values):
    assert flatten(parse_params([format_params(values)])) == values


def test_a_dataset_may_override_a_methods_stages(tables):
    own = {
        "stage_1": {"flow": {"type": "realnvp"}, "dim": 1},
        "stage_2": {"dim": 1, "phase": {"training": {"steps": 3}}},
    }
    tables["datasets"]["circle"] = {"source": "circle", **own}
    circle = {**tables, "dataset": "circle"}
    chosen = resolve({**circle, "first": {"reconstruction": {"weight": 0.5}}}).parameters()
    assert chosen["data"]["source"] == "circle"
    assert chosen["stage_1"]["flow"] == {
        "type": "realnvp",
        "couplings": 2,
        "hidden": None,
        "mixing": False,
        "bins": 0,
    }
    assert chosen["stage_1"]["dim"] == 1
    assert chosen["first"]["reconstruction"]["weight"] == 0.5
    assert chosen["first"]["training"]["learning_rate"] == 1e-4
    assert (chosen["stage_2"]["dim"], chosen["second"]["training"]["steps"]) == (1, 3)
    assert len(resolve({**circle, "method": "one"}).model.stages) == 1
    assert (
        resolve({**circle, "stage_1": {"dim": 2}, "stage_2": {"dim": 1}}).model.stages[0].dim == 2
    )
    # its settings of phases replace those of a method that has them
    tables["datasets"]["circle"]["phases"] = {"first": {"training": {"steps": 7}}, "none": {}}
    assert [phase.training.steps for phase in resolve(circle).phases.values()] == [7, 3]
    del tables["datasets"]["circle"]["phases"]
    # phases are those of the stage that they begin at, whichever their number
    tables["methods"]["two"]["phases"] |= {"second": {"stages": 1}, "third": {"stages": 2}}
    assert [phase.training.steps for phase in resolve(circle).phases.values()] == [9, 9, 3]


@pytest.mark.parametrize(
    ("user", "steps"),
    [
        ({"training": {"steps": 5}}, [5, 5]),  # also where the method's entry has its own
        ({"training": {"steps": 5}, "first": {"training": {"steps": 6}}}, [6, 5]),
    ],
)
def test_settings_of_a_phase_override_training(tables, user, steps):
    tables["methods"]["two"]["phases"]["first"]["training"] = {"steps": 3}
    phases = resolve({**tables, **user}).phases.values()
    assert [phase.training.steps for phase in phases] == steps


def test_settings_of_a_penalty_are_idle_if_another_kind_is_selected(tables):
    tables["methods"]["both"]["phases"]["first"] = {
        "reconstruction": {"penalty": "huber", "delta": 0.3}
    }
    both = {**tables, "method": "both"}
    assert resolve(both).phases["first"].reconstruction.delta == 0.3
    square = resolve({**both, "first": {"reconstruction": {"penalty": "mse"}}})
    assert square.phases["first"].reconstruction.penalty == "mse"
    assert "delta" not in effective(square.phases["first"])["reconstruction"]
    none = resolve({**both, "first": {"reconstruction": {"penalty": "none"}}})
    assert none.phases["first"].reconstruction.weight == 0


def test_phases_share_a_learning_rate_schedule(tables):
    phases = {
        "first": {"stages": 1},
        "again": {"stages": 1, "continues": "first"},
        "second": {"stages": 2},
    }
    tables["methods"]["two"]["phases"] = phases
    cooled = {
        "first": {"training": {"steps": 30, "cooldown_fraction": 0.7}},
        "again": {"training": {"steps": 10}},
    }
    first, again, second = [p.training for p in resolve({**tables, **cooled}).phases.values()]
    assert (first.span, again.span, second.span) == ((0, 0.75), (0.75, 1), (0, 1))
    assert first.cooldown_fraction == again.cooldown_fraction == 0.7 != second.cooldown_fraction
    phases["again"]["continues"] = "second"
    with pytest.raises(UserError, match=r"again\.continues: expected .*first.*, got second"):
        resolve({**tables})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"threads": 100_000}, "threads=100000 cannot be used: .* less than or equal to 1024"),
        ({"training": {"batch_size": 10**9}}, "batch_size=1000000000 cannot be used"),
        (
            {"stage_1": {"flow": {"type": "realnvp", "hidden": 10**6}}},
            r"^stage_1\.flow\.hidden: expected at most 16,384, got 1,000,000",
        ),
        ({"evaluation": {"samples": 10**11}}, "evaluation.samples=100000000000 cannot be used"),
    ],
)
def test_absurd_sizes_are_refused(tables, params, message):
    with pytest.raises(UserError, match=message):
        resolve({**tables, **params})


@pytest.mark.parametrize("name", ["stage_4", "stage_01"])
def test_stages_have_no_gap(tables, name):
    with pytest.raises(UserError, match="numbers from 1 without a gap"):
        resolve({**tables, name: {"dim": 3}})


def test_a_stage_may_have_a_list_of_flows(tables):
    experiment = resolve({**tables, "stage_2": {"flow": [{"type": "affine"}, {"type": "realnvp"}]}})
    flows = experiment.model.stages[1].flow
    assert [flow.type for flow in flows] == ["affine", "realnvp"]
    assert flows[1].couplings == 2
    again = resolve({**tables, "stage_2": experiment.parameters()["stage_2"]})
    assert again.model.stages[1].flow == flows
    with pytest.raises(UserError, match=r"stage_2\.flow\.type: expected .*, got glow"):
        resolve({**tables, "stage_2": {"flow": [{"type": "affine"}, {"type": "glow"}]}})
    with pytest.raises(UserError, match=r"stage_2\.flow.* at least 1"):
        resolve({**tables, "stage_2": {"flow": []}})


def test_a_time_budget_changes_the_keys_of_all_phases_but_not_with_the_seed(tables):
    def resolved(**given):
        return resolve({**tables, **given})

    plain = resolved()
    timed, other = (resolved(training={"minutes": minutes}) for minutes in (4, 5))
    assert (plain.minutes, timed.minutes) == (None, 4)
    assert timed.phases == plain.phases, "their steps are proportions"
    assert timed.parameters()["training"] == {"minutes": 4}
    assert "steps" not in timed.parameters()["first"]["training"]
    keys, changed = artifact_keys(timed, Path()), artifact_keys(other, Path())
    assert {k for k in keys if keys[k] == changed[k]} == {"data", "baselines"}
    seeded = artifact_keys(resolved(training={"minutes": 4}, seed=9), Path())
    unseeded = {"data", "baselines", "schedule"}
    assert {k for k in keys if keys[k] == seeded[k]} == unseeded
    tables["methods"]["two"]["phases"]["first"]["training"] = {"steps": 3}
    assert artifact_keys(resolved(training={"minutes": 4}), Path())["schedule"] != keys["schedule"]


@pytest.mark.parametrize(
    "user",
    [
        {"training": {"steps": 5}},
        {"first": {"training": {"steps": 5}}},
        {"second": {"probes": 5}},
    ],
)
def test_a_time_budget_and_steps_are_refused(tables, user):
    (name,) = flatten(user)
    with pytest.raises(UserError, match=f"^training.minutes: expected no steps .* got {name}\\. "):
        resolve({**tables, **user, "training": {"minutes": 4, **user.get("training", {})}})


INVALID_NAMES = ["../../elsewhere", "..", "", "a\nb", ".hidden", "-x", "x" * 101]


@pytest.mark.parametrize("name", INVALID_NAMES, ids=repr)
def test_names_are_one_component_of_a_path(tables, name):
    with pytest.raises(
        UserError, match=rf"^name={re.escape(name)} cannot be used: expected a file"
    ):
        resolve({**tables, "name": name})


ROTATED = {
    "stage_1": {"flow": {"type": "glow"}, "dim": 24},
    "stage_2": {"flow": {"type": "realnvp"}, "dim": 12},
    "phases": {
        "first": {"stages": 1},
        "second": {"rotate": 1},
        "third": {"stages": 2, "reconstruction": {"space": "metric"}},
        "fourth": {"rotate": 2, "probes": 300},
    },
}


def with_method(tables, **changes):
    entry = {**ROTATED, "phases": {**deepcopy(ROTATED["phases"]), **changes}}
    return {**tables, "method": "rotated", "methods": {**tables["methods"], "rotated": entry}}


def test_a_phase_may_rotate_latents(tables):
    experiment = resolve(with_method(tables))
    assert trained(experiment) == [(1,), (1,), (2,), (2,)]
    assert list(experiment.trainings) == ["first", "third"]
    assert [source and tuple(source) for source in experiment.sources.values()] == [
        None,
        None,
        ("second", 1),
        ("second", 1),
    ]
    assert experiment.phases["fourth"].probes == 300
    assert experiment.parameters()["second"] == {"rotate": 1, "probes": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second": {"rotate": 2}}, "second.rotate: expected 1, got 2"),
        ({"first": {"rotate": 1}}, "first.rotate: expected a phase that trains before it"),
        ({"second": {"rotate": 1, "training": {"steps": 3}}}, "training is not a setting"),
        ({"second": {"stages": 1}}, "no phase before rotates stage 1"),
    ],
)
def test_invalid_rotations_are_refused(tables, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(with_method(tables, **changes))


def test_rows_of_another_table_depend_on_the_training_data_that_standardize_them(tmp_path):
    for name in ("rows", "other"):
        rows = np.random.default_rng(0).normal(size=(100, 3))
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", header="a,b,c", comments="")

    def keys(**data):
        given = {"dataset": "table", "ood": str(tmp_path / "other.csv")}
        data = {"path": str(tmp_path / "rows.csv"), **data}
        return artifact_keys(resolve({**BASE, **given, "data": data}), tmp_path)

    before, after = keys(), keys(seed=5)
    assert before == keys()
    assert before["ood_data"] != after["ood_data"]


@pytest.mark.parametrize(
    ("method", "size", "dims"),
    [
        ("density-first", 32, [500, None]),
        ("density-first", 8, [96, None]),
        ("H-MM", 32, [1000, 500]),
        ("H-MM", 16, [384, 192]),
    ],
)
def test_small_images_have_manifolds_of_fewer_dimensions_than_pixels(method, size, dims):
    given = {**BASE, "dataset": "photos", "method": method, "data": {"size": size}}
    assert [stage.dim for stage in resolve(given).model.stages] == dims
    with pytest.raises(UserError, match=f"expected 1 to {3 * size**2}, the latents of the flow"):
        resolve({**given, "stage_1": {"dim": 3 * size**2 + 1}})


def test_a_dataset_has_a_default_method(tables):
    tables["datasets"]["photos"]["method"] = "one"
    experiment = resolve({**tables, "method": "auto"})
    assert experiment.method == "one"
    assert trained(experiment) == [(1,)]
    assert resolve({**tables, "method": "two"}).method == "two"


@pytest.mark.parametrize("dataset", ["photos", "table"])
def test_the_default_method_in_python_is_that_of_the_configuration(dataset, tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 6))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,c,d,e,f", comments="")
    data = {"path": str(tmp_path / "rows.csv")} if dataset == "table" else {}
    experiment = resolve({**BASE, "dataset": dataset, "data": data, "stage_1": {"dim": 3}})
    model, phases = default_method(dataset, 3)
    assert (model, phases) == (experiment.model, experiment.phases)
