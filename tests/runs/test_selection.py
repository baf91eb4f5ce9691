"""The experiment that the options of `submanifold train` select."""

import re
from dataclasses import replace

import pytest

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.config.loader import load_configuration
from submanifold.config.project import PACKAGED_CONF
from submanifold.inference.records import RECORDS, read_records, write_record
from submanifold.runs.selection import select_experiment


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dims(record):
    """The dimensions of the stages of a run."""
    stages = load_configuration(PACKAGED_CONF, record.params).experiment.model.stages
    return [stage.dim for stage in stages]


@pytest.mark.parametrize(
    ("options", "params", "method", "expected"),
    [
        ({}, {}, "density-first", [7, None]),
        ({"method": "auto"}, {}, "density-first", [7, None]),
        ({"method": "PR-D"}, {}, "PR-D", [7]),
        ({}, {"method": "H-MM"}, "H-MM", [1000, 7]),
    ],
)
def test_the_dimension_is_that_of_the_stages_of_the_method(
    folder, options, params, method, expected
):
    record = select_experiment(folder, "photos", options, 7, params)
    assert record.method == method
    assert dims(record) == expected


def test_the_environment_is_that_of_the_session(folder, monkeypatch):
    monkeypatch.setenv("KEDRO_ENV", "test")
    in_test = select_experiment(folder, "photos", {}, None, {}).key
    environment = load_configuration(PACKAGED_CONF, {"dataset": "photos"}, "test")
    assert in_test == environment.artifact_keys["model"]
    monkeypatch.delenv("KEDRO_ENV")
    assert select_experiment(folder, "photos", {}, None, {}).key != in_test


def test_a_name_is_given_again_after_all_settings_are_checked(folder):
    first = write_record(folder, select_experiment(folder, "photos", {"seed": 1}, None, {}), "mine")
    victim = folder / "data" / "victim.json"
    victim.write_text("{}")
    for options, message in (
        ({"name": "../victim"}, "name=../victim cannot be used"),
        ({"name": "mine", "method": "H-XX"}, "--method: expected one of"),
        ({"name": "mine", "data.size": 33}, "expected image sides divisible by 8"),
        ({}, "--again: expected a name with it, got none. Add --name=<name>, or omit it."),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            select_experiment(folder, "photos", options, None, {}, again=True)
    assert victim.exists()
    assert read_records(folder) == [first]
    assert (
        select_experiment(folder, "photos", {"name": "mine"}, None, {}, again=True).name == "mine"
    )
    assert read_records(folder) == []


def test_the_name_of_a_running_run_is_not_given_again(folder):
    running = replace(
        select_experiment(folder, "photos", {"seed": 1}, None, {}), lock=".lock-of-run"
    )
    with locked(folder / RECORDS, "it", running.lock):
        running = write_record(folder, running, "mine")
        with pytest.raises(UserError, match=r"^--name: expected a name that no running run has"):
            select_experiment(folder, "photos", {"name": "mine"}, None, {}, again=True)
        select_experiment(
            folder, "photos", {"name": "mine", "seed": 1}, None, {}, again=True
        )  # itself
    assert read_records(folder) == [running]
