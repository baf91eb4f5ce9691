"""From conf/ to one experiment: tables, choices, keys."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from submanifold.config import ExperimentConfigLoader, artifact_keys, choose, expand, stage_settings
from submanifold.data.synthetic import MANIFOLDS
from submanifold.errors import UserError

CONF = Path(__file__).parents[1] / "conf"
METHODS = list(yaml.safe_load((CONF / "base" / "parameters.yml").read_text())["methods"])
DATASETS = ("photos", "celeba", "lsun_bedroom", "folder", *MANIFOLDS)


def load(env, **params):
    loader = ExperimentConfigLoader(
        str(CONF),
        env=env,
        base_env="base",
        default_run_env="local",
        runtime_params=params,
        merge_strategy={"parameters": "soft", "catalog": "soft"},
    )
    return loader["parameters"]


@pytest.fixture
def tables():
    """What Kedro merges from conf/base, before a choice is made."""
    training = {
        "batch_size": 8,
        "warmup": 0,
        "schedule": "constant",
        "clip": 1.0,
        "ema": 0.9,
        "validate_every": 5,
        "precision": "float32",
    }
    common = {"penalty": "mse", "penalty_weight": 1.0, "penalty_space": "image"}
    common |= {"delta": 0.1, "likelihood_weight": 1.0}
    return {
        "dataset": "photos",
        "method": "two",
        "seed": 3,
        "device": "cpu",
        "evaluation": {"samples": 10, "dequantizations": 1, "inception_weights": "auto"},
        "datasets": {"photos": {"source": "photos", "size": 8}, "folder": {"source": "folder"}},
        "methods": {
            "two": {"stage_1": {"flow": {"type": "glow"}, "dim": 20}, "stage_2": {"dim": 10}},
            "one": {"schedule": "joint", "stage_1": {"flow": {"type": "glow"}, "dim": 9}},
        },
        "stage_defaults": {
            "glow": {
                "flow": {"type": "glow", "levels": 2, "steps": 1, "width": 4},
                **common,
                "training": {"steps": 7, "learning_rate": 1e-3},
            },
            "realnvp": {
                "flow": {"type": "realnvp", "couplings": 2},
                **common,
                "training": {"steps": 9, "learning_rate": 1e-4},
            },
            "affine": {
                "flow": {"type": "affine"},
                **common,
                "training": {"steps": 9, "learning_rate": 1e-4},
            },
        },
        "training": training,
    }


def test_the_rows_are_chosen_and_the_tables_are_gone(tables):
    before = deepcopy(tables)
    chosen = choose(tables)
    assert tables == before
    assert set(chosen) == {
        *("dataset", "method", "schedule", "seed", "device", "sweep", "data", "evaluation"),
        *("stage_1", "stage_2"),
    }
    assert chosen["schedule"] == "hierarchical"
    assert chosen["data"] == {"source": "photos", "size": 8}
    assert chosen["stage_1"]["flow"] == tables["stage_defaults"]["glow"]["flow"]
    assert chosen["stage_1"]["training"] == {**tables["training"], "steps": 7} | {
        "learning_rate": 1e-3
    }
    assert chosen["stage_2"]["flow"]["type"] == "realnvp"
    assert chosen["stage_2"]["training"]["steps"] == 9


def test_a_choice_of_one_stage_brings_its_schedule(tables):
    chosen = choose({**tables, "method": "one"})
    assert chosen["schedule"] == "joint"
    assert list(stage_settings(chosen)) == ["stage_1"]


def test_what_is_given_lies_over_the_rows_and_leaves_the_rest(tables):
    given = {
        "data": {"counts": {"train": 5}},
        "stage_1": {"penalty_weight": 7.0, "flow": {"width": 6}, "training": {"clip": 0.5}},
        "stage_3": {"dim": 4, "flow": {"type": "affine"}},
    }
    chosen, plain = choose({**tables, **given}), choose(tables)
    assert chosen["data"] == {"source": "photos", "size": 8, "counts": {"train": 5}}
    assert chosen["stage_1"]["flow"] == {**plain["stage_1"]["flow"], "width": 6}
    assert chosen["stage_1"]["penalty_weight"] == 7.0
    assert chosen["stage_1"]["training"] == {**plain["stage_1"]["training"], "clip": 0.5}
    assert chosen["stage_1"]["dim"] == 20
    assert chosen["stage_2"] == plain["stage_2"]
    assert chosen["stage_3"]["flow"] == {"type": "affine"}


def test_a_dataset_may_say_what_a_methods_stages_are_on_it(tables):
    own = {
        "stage_1": {"flow": {"type": "realnvp"}, "dim": 1},
        "stage_2": {"dim": 1, "training": {"steps": 3}},
    }
    tables["datasets"]["circle"] = {"source": "circle", **own}
    chosen = choose({**tables, "dataset": "circle", "stage_1": {"delta": 0.5}})
    assert chosen["data"] == {"source": "circle"}
    assert chosen["stage_1"]["flow"] == {"type": "realnvp", "couplings": 2}
    assert (chosen["stage_1"]["dim"], chosen["stage_1"]["delta"]) == (1, 0.5)
    assert chosen["stage_1"]["training"]["learning_rate"] == 1e-4
    assert (chosen["stage_2"]["dim"], chosen["stage_2"]["training"]["steps"]) == (1, 3)
    one = choose({**tables, "dataset": "circle", "method": "one"})
    assert list(stage_settings(one)) == ["stage_1"]
    given = choose({**tables, "dataset": "circle", "stage_1": {"dim": 2}})
    assert given["stage_1"]["dim"] == 2


def test_a_dimension_cannot_grow_from_stage_to_stage(tables):
    with pytest.raises(UserError, match=r"stage_2: A manifold of dimension 21 in a space of 20"):
        choose({**tables, "stage_2": {"dim": 21}})


def test_names_with_an_underscore_are_for_anchors(tables):
    assert choose({**tables, "_anchor": {"x": 1}}) == choose(tables)


def test_a_method_may_have_more_than_nine_stages(tables):
    more = {f"stage_{n}": {"dim": 21 - n} for n in range(2, 13)}
    chosen = choose({**tables, **more})
    names = [f"stage_{n}" for n in range(1, 13)]
    assert list(stage_settings(chosen)) == names
    assert [s["dim"] for s in stage_settings(chosen).values()] == list(range(20, 8, -1))
    keys = artifact_keys(chosen, Path())
    catalog = expand({"stage_{n}.flow": {"filepath": "x/{key}/f"}}, keys)
    assert catalog == {f"{name}.flow": {"filepath": f"x/{keys[name]}/f"} for name in names}


@pytest.mark.parametrize("name", ["stage_4", "stage_0", "stage_", "stage_two", "stage_01"])
def test_stages_have_no_gap(tables, name):
    with pytest.raises(UserError, match="numbered from 1 without a gap"):
        choose({**tables, name: {"dim": 3}})


CHANGES = {
    # what is changed: which keys change
    "nothing": ({}, set()),
    "device": ({"device": "cuda"}, set()),
    "path of the data": ({"data": {"path": None}}, set()),
    "evaluation": (
        {"evaluation": {"samples": 9, "dequantizations": 1, "inception_weights": "auto"}},
        {"run"},
    ),
    "schedule": ({"schedule": "joint"}, {"model", "run"}),
    "stage 2": ({"stage_2": {"delta": 0.3}}, {"stage_2", "model", "run"}),
    "training of stage 2": (
        {"stage_2": {"training": {"clip": 3.0}}},
        {"stage_2", "model", "run"},
    ),
    "stage 1": ({"stage_1": {"delta": 0.3}}, {"stage_1", "stage_2", "model", "run"}),
    "seed": ({"seed": 4}, {"stage_1", "stage_2", "model", "run"}),
    "data": ({"data": {"channels": 1}}, {"data", "stage_1", "stage_2", "model", "run"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_key_changes_with_what_its_artifact_depends_on_and_nothing_else(tables, what):
    given, changed = CHANGES[what]
    before = artifact_keys(choose(tables), Path())
    after = artifact_keys(choose({**tables, **given}), Path())
    assert {name for name in before if before[name] != after[name]} == changed


def test_methods_share_the_keys_of_the_stages_they_share(tables):
    tables["methods"]["other"] = deepcopy(tables["methods"]["two"])
    tables["methods"]["other"]["stage_2"]["penalty"] = "huber"
    mine, other = (
        artifact_keys(choose({**tables, "method": method}), Path()) for method in ("two", "other")
    )
    same = {name for name in mine if mine[name] == other[name]}
    assert same == {"data", "stage_1"}
    assert mine["model"].startswith("photos-two-")
    assert other["model"].startswith("photos-other-")


def test_the_key_of_a_folder_follows_its_content_not_its_place(tables, tmp_path):
    def key(folder):
        chosen = choose({**tables, "dataset": "folder", "data": {"path": str(folder), "size": 8}})
        return artifact_keys(chosen, Path())["data"]

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"one")
    assert key(tmp_path / "here") == key(tmp_path / "there")
    (tmp_path / "there" / "2.png").write_bytes(b"two")
    assert key(tmp_path / "here") != key(tmp_path / "there")


def test_catalog_entries_are_written_out_for_every_stage():
    entry = {"filepath": "m/{key}/flow", "metadata": {"layer": "stage {n}"}}
    keys = {"data": "d", "stage_1": "k1", "stage_2": "k2", "model": "m"}
    assert expand({"stage_{n}.flow": entry, "data": {"type": "x"}}, keys) == {
        "stage_1.flow": {"filepath": "m/k1/flow", "metadata": {"layer": "stage 1"}},
        "stage_2.flow": {"filepath": "m/k2/flow", "metadata": {"layer": "stage 2"}},
        "data": {"type": "x"},
    }


@pytest.mark.parametrize("env", ["local", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_tables_is_valid(env, method):
    parameters = load(env, method=method)
    stages = stage_settings(parameters)
    assert parameters["schedule"] == ("hierarchical" if method.startswith("H-") else "joint")
    assert stages["stage_1"]["flow"]["type"] == "glow"
    family, _, letters = method.removesuffix("-star").partition("-")
    if family in ("PR", "EE", "H"):
        penalties = {"M": "mse", "H": "huber", "D": "huber"}
        for stage, letter in zip(stages.values(), letters, strict=False):
            assert stage["penalty"] == penalties[letter]
    assert stages["stage_1"]["likelihood_weight"] == (0.5 if method.endswith("-star") else 1.0)


@pytest.mark.parametrize("env", ["local", "paper"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_of_the_tables_is_valid(env, dataset):
    data = {"path": "somewhere"} if dataset in ("folder", "lsun_bedroom") else {}
    assert load(env, dataset=dataset, data=data)["data"]["source"] == dataset


@pytest.mark.parametrize("method", ["H-MM", "PR-D", "EE-M"])
def test_the_test_environment_is_valid(method):
    assert load("test", method=method)["stage_1"]["training"]["steps"] == 12


def test_the_paper_environment_is_the_papers():
    parameters = load("paper", dataset="celeba")
    one, two = parameters["stage_1"], parameters["stage_2"]
    assert one["flow"] == {"type": "glow", "levels": 3, "steps": 32, "width": 512}
    assert (one["dim"], two["dim"]) == (1000, 500)
    for stage in (one, two):
        assert stage["penalty_weight"] == 1.0
        assert stage["training"]["learning_rate"] == 1e-5
        assert stage["training"]["batch_size"] == 64
        assert stage["training"]["schedule"] == "constant"
    assert parameters["data"]["counts"] == {"train": 200782, "valid": 800}
    assert parameters["evaluation"]["samples"] == 10000
