"""Kedro's configuration of one experiment."""

import copy
import functools
import shutil
from pathlib import Path

import pytest
import yaml
from kedro.config import MissingConfigException

from submanifold.common.errors import UserError
from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.config.merge import merge
from submanifold.config.project import PACKAGED_CONF, conf_source, find_checkout
from submanifold.config.resolve import resolve
from submanifold.config.validate import validate
from submanifold.data.synthetic import MANIFOLDS
from submanifold.inference.records import write_record

CONF = Path(__file__).parents[2] / "conf"
METHODS = list(yaml.safe_load((CONF / "base" / "parameters_methods.yml").read_text())["methods"])
DATASETS = ("photos", "celeba", "lsun_bedroom", "folder", *MANIFOLDS)


def loader(env, **params):
    """The packaged configuration, of a project in the current folder, which is empty."""
    conf = str(PACKAGED_CONF)
    return ExperimentConfigLoader(conf, env=env, runtime_params=params, **LOADER_ARGS)


def load(env, **params):
    return loader(env, **params).experiment.parameters()


@functools.cache
def tables():
    """The parameters in files, which take long to read."""
    return loader(None).tables


def experiment(**params):
    """The experiment that parameters select, as the loader does."""
    selected = resolve(merge(copy.deepcopy(tables()), params))
    validate(selected)
    return selected


def test_the_catalog_has_a_phase_for_each_of_more_than_nine():
    stages = {f"stage_{n}": {"dim": 1000 - n} for n in range(1, 13)}
    catalog = loader(None, method="H-MM", **stages)["catalog"]
    models = [f"stage_{n}.model" for n in range(1, 13)]
    assert [name for name in catalog if name.endswith(".model")] == models
    assert len({catalog[name]["filepath"] for name in models}) == 12


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_tables_is_valid(method):
    dataset = {"noise-conditional": "wine"}.get(method, "photos")
    selected = experiment(method=method, dataset=dataset)
    flow = {
        "SoftFlow": "soft_glow",
        "trumpet": "trumpet",
        "autoencoder": "autoencoder",
        "FIF": "autoencoder",
        "conformal": "conformal",
        "noise-conditional": "tabular",
    }.get(method, "glow")
    assert selected.model.stages[0].flow[0].type == flow
    rotates = len(selected.trainings) < len(selected.phases)
    ordered = ("nested", "density", "noise-conditional")
    assert rotates == (method.startswith(ordered) or method.endswith("-rotated"))
    family, _, letters = method.removesuffix("-star").removesuffix("-rotated").partition("-")
    if family in ("PR", "EE", "H"):
        penalties = {"M": "mse", "H": "huber", "D": "huber"}
        for phase, letter in zip(selected.trainings.values(), letters, strict=False):
            assert phase.reconstruction.penalty == penalties[letter]
    weight = next(iter(selected.trainings.values())).likelihood.weight
    without = method.startswith("M-flow") or method in (
        "rectangular",
        "trumpet",
        "autoencoder",
        "FIF",
    )
    assert weight == (0.0 if without else 0.5 if "-star" in method else 1.0)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_of_the_tables_is_valid(dataset):
    placed = ("folder", "lsun_bedroom", "medmnist")
    data = {"path": "somewhere"} if dataset in placed else {}
    assert experiment(dataset=dataset, data=data).data.source == dataset


def test_the_paper_environment_is_the_papers():
    parameters = load("paper", dataset="celeba")
    paper = {
        "type": "glow",
        "levels": 3,
        "steps": 32,
        "width": 512,
        "whiten": False,
        "black_spread": None,
    }
    assert parameters["stage_1"]["flow"] == paper
    assert (parameters["stage_1"]["dim"], parameters["stage_2"]["dim"]) == (1000, 500)
    for phase in (parameters["stage_1"], parameters["stage_2"]):
        assert phase["reconstruction"]["weight"] == 1.0
        assert phase["training"]["learning_rate"] == 1e-5
        assert phase["training"]["batch_size"] == 64
        assert phase["training"]["cooldown_fraction"] == 0
    counts = parameters["data"]["counts"]
    assert (counts["train"], counts["valid"]) == (200782, 800)
    assert parameters["evaluation"]["samples"] == 10000


def test_loaders_in_turn_resolve_their_own_keys_and_parameters():
    """OmegaConf's resolvers belong to the process: the last loader's values must not be taken."""
    first, second = loader(None, seed=1), loader(None, seed=2, dataset="circle")
    dirs = [
        second["catalog"]["manifest"]["dataset"]["filepath"],
        first["catalog"]["manifest"]["dataset"]["filepath"],
    ]
    assert "circle" in dirs[0]
    assert "digits" in dirs[1]
    names = [each.run_name for each in (second, first)]
    assert names[0].endswith("H-MM")
    assert names[1].endswith("density-first-small")


@pytest.fixture
def own_conf(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    (tmp_path / "conf" / "local").mkdir()
    return tmp_path / "conf"


def own_loader(conf, **params):
    return ExperimentConfigLoader(str(conf), runtime_params=params, **LOADER_ARGS)


def test_a_changed_file_is_read_again_and_runtime_parameters_lie_over_it(own_conf):
    local = own_conf / "local" / "parameters.yml"
    assert own_loader(own_conf)["parameters"]["seed"] == 0
    local.write_text("seed: 12\n")
    assert own_loader(own_conf)["parameters"]["seed"] == 12
    assert own_loader(own_conf, seed=3)["parameters"]["seed"] == 3
    assert own_loader(own_conf)["parameters"]["seed"] == 12


def test_the_name_of_a_run_is_that_of_its_record(own_conf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = own_loader(own_conf, seed=1), own_loader(own_conf, seed=2)
    assert first.run_name == second.run_name, "neither has started"
    records = [write_record(tmp_path, run.record(), None) for run in (first, second)]
    assert [first.run_name, second.run_name] == [record.name for record in records]
    assert first.run_name != second.run_name


def test_a_configuration_elsewhere_is_one_of_the_current_project(own_conf, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(CONF.parent / "pyproject.toml", project)
    monkeypatch.chdir(project)
    assert own_loader(own_conf).project == project
    archive = shutil.make_archive(str(tmp_path / "conf"), "gztar", own_conf.parent, own_conf.name)
    packaged = own_loader(archive)
    assert packaged.project == project
    assert packaged["parameters"]["seed"] == 0
    with pytest.raises(MissingConfigException):  # which Kedro catches
        packaged["credentials"]


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        '[project]\ndependencies = ["submanifold"]\n[tool.kedro]\npackage_name = "other"\n',
        '[tool.kedro]\npackage_name = "submanifold',
    ],
)
def test_only_the_project_itself_is_taken_for_its_checkout(tmp_path, metadata):
    """Other Kedro projects have a folder conf/base too, and may depend on this package."""
    (tmp_path / "conf" / "base").mkdir(parents=True)
    if metadata is not None:
        (tmp_path / "pyproject.toml").write_text(metadata)
    assert find_checkout(tmp_path / "conf") is None
    assert conf_source(tmp_path) == PACKAGED_CONF
    shutil.copy(CONF.parent / "pyproject.toml", tmp_path)
    assert find_checkout(tmp_path / "conf") == tmp_path
    assert conf_source(tmp_path) == tmp_path / "conf"


def test_parameters_have_no_cache_keys(own_conf):
    """A key depends on all parameters."""
    (own_conf / "local" / "parameters.yml").write_text("seed: ${key:data}\n")
    with pytest.raises(UserError, match=r"^seed: expected .* got KeyError raised") as caught:
        own_loader(own_conf).record()
    assert str(caught.value).count("expected") == 1


def test_an_unknown_cache_key_in_the_catalog_is_an_error_and_those_of_ood_may_be_absent(own_conf):
    """With equal text in place of a key, two methods would share a file."""
    catalog = "{type: json.JSONDataset, filepath: 'data/${key:%s}.json'}"
    (own_conf / "local" / "catalog.yml").write_text(f"mine: {catalog % 'modle'}\n")
    with pytest.raises(UserError, match=r"^mine\.filepath: expected .* got .*'modle'"):
        own_loader(own_conf)["catalog"]
    (own_conf / "local" / "catalog.yml").write_text(f"mine: {catalog % 'ood_run'}\n")
    assert own_loader(own_conf)["catalog"]["mine"]["filepath"] == "data/none.json"


def test_a_changed_catalog_is_not_that_of_the_next_reader(own_conf):
    """Kedro makes the paths of its catalog absolute, in place."""
    configuration = own_loader(own_conf)
    first = configuration["catalog"]["manifest"]["dataset"]
    path, first["filepath"] = first["filepath"], "elsewhere"
    assert configuration["catalog"]["manifest"]["dataset"]["filepath"] == path


def test_a_missing_folder_of_the_default_environment_is_named(own_conf):
    shutil.rmtree(own_conf / "local")
    with pytest.raises(UserError, match=r"^--env: expected .*, got local"):
        own_loader(own_conf)["parameters"]
