"""Searches: studies whose trials are runs at the size of a test, or stand-ins of runs."""

import os
import signal
import sqlite3
import sys
from collections import Counter
from functools import partial

import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial

from conftest import wait_for
from submanifold.common.device import choose_device
from submanifold.common.errors import UserError
from submanifold.evaluation.measure import objective
from submanifold.runs.experiments import CachedRun
from submanifold.runs.tracking import observer
from submanifold.studies.search import STORAGE, search

pytestmark = pytest.mark.pipeline

PARAMS = {"method": "PR-D", "device": "cpu"}
DIMS = {"stage_1.dim": [8, 9]}


def write(project, name, **settings):
    path = project.path / f"{name}.yml"
    path.write_text(yaml.safe_dump({"params": PARAMS, **settings}))
    return path


def url(project):
    return f"sqlite:///{project.path}/data/studies.db"


def run(project, name, **settings):
    """Run a study in this process."""
    with project.session():
        search(write(project, name, **settings), project.path, "test", url(project))
    return opened(project, name)


def opened(project, name):
    return optuna.load_study(study_name=name, storage=url(project))


def refused(project, path, *options):
    """The message of a command that fails."""
    code, output = project.invoke("search", str(path), "--env=test", *options)
    assert code == 1
    return output


@pytest.fixture
def untrained(monkeypatch):
    """Runs that do nothing, and whose bits per dimension are d; return what replaces them."""
    monkeypatch.setattr(CachedRun, "run", lambda run: None)
    monkeypatch.setattr(CachedRun, "load", lambda run, name: {"steps": 1000})
    monkeypatch.setattr(CachedRun, "load_model", lambda run: run.settings.model.stages[-1].dim)
    values = {"bits_per_dim": float, "mse": lambda dim: 1 / dim}
    monkeypatch.setattr(
        "submanifold.studies.search.objective", lambda name, dim, *_: values[name](dim)
    )
    return partial(monkeypatch.setattr, CachedRun, "run")


def test_a_grid_finds_the_better_of_two_settings(project):
    settings = {"sampler": "grid", "search": {"stage_1.training.steps": [1, 60]}}
    study = run(project, "steps", **settings)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert study.best_params == {"stage_1.training.steps": 60}, "more training is better"
    best = CachedRun("", PARAMS, project.path, "test").with_params({"stage_1.training.steps": 60})
    model, events = best.load("hierarchy"), best.load("x_valid")
    assert study.best_value == objective("bits_per_dim", model, events, choose_device("cpu"))
    assert not any(map(best.catalog.exists, ("metrics", "samples", "report"))), "take most of time"
    runs = {int(run.data.tags["submanifold.trial"]): run for run in project.mlflow_runs()}
    for trial in study.trials:
        assert trial.user_attrs["mlflow_run"] == runs[trial.number].info.run_id
    assert len(run(project, "steps", **settings).trials) == 2
    assert len(project.mlflow_runs()) == 2, "a finished study trains nothing"


def test_two_objectives_have_a_pareto_front(project, untrained):
    study = run(
        project,
        "front",
        trials=3,
        objectives=["bits_per_dim", "mse"],
        search={
            "stage_1.dim": {"low": 4, "high": 48},
            "stage_1.reconstruction.weight": {"low": 1.0, "high": 1000.0, "log": True},
            "stage_1.flow.steps": [[2, 1], [1, 1]],
        },
    )
    for trial in study.trials:
        dim = trial.params["stage_1.dim"]
        assert trial.values == [dim, 1 / dim]
        assert trial.params["stage_1.flow.steps"] in ("[2, 1]", "[1, 1]")
    assert len(study.best_trials) == 3


def test_a_trial_without_a_sign_of_life_is_repeated(project, untrained):
    study = run(project, "dead", trials=1, search=DIMS)
    dead = study.ask({"stage_1.dim": optuna.distributions.CategoricalDistribution([8, 9])})
    STORAGE(url(project)).record_heartbeat(dead._trial_id)
    make_stale(project)
    last = run(project, "dead", trials=2, search=DIMS).trials
    assert [trial.state.name for trial in last] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert last[2].params == last[1].params
    assert last[2].system_attrs["failed_trial"] == 1


def make_stale(project):
    with sqlite3.connect(project.path / "data/studies.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 day')")


def test_an_interrupted_trial_is_repeated_at_once(project, untrained):
    def interrupt(run):
        raise KeyboardInterrupt

    settings = {"trials": 1, "search": {"stage_1.dim": {"low": 4, "high": 48}}}
    untrained(interrupt)
    with pytest.raises(SystemExit):
        run(project, "interrupted", **settings)
    untrained(lambda run: None)
    trials = run(project, "interrupted", **settings).trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert trials[0].params == trials[1].params


def test_a_bad_training_is_pruned_by_its_steps_and_those_of_earlier_phases(project, untrained):
    def validate(run):
        row = {"valid.bits_per_dim": 3.0}
        observer.get().on_log("reconstruction", 10, row)

    untrained(validate)
    settings = {"params": {"method": "penalty-after", "device": "cpu"}, "search": {"seed": [0, 1]}}
    study = run(project, "pruned", trials=1, **settings)
    assert study.trials[0].intermediate_values == {1010: 3.0}
    first = study.trials[0]
    for _ in range(4):
        study.add_trial(
            create_trial(
                params=first.params,
                distributions=first.distributions,
                value=-9.0,
                intermediate_values={1010: -9.0},
            )
        )
    assert run(project, "pruned", trials=6, **settings).trials[-1].state == TrialState.PRUNED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": {"stage_1.delt": [1, 2]}}, "stage_1.delt is not a setting; known: flow"),
        (
            {"search": {"stage_1.dim": {"low": 9, "high": 3}}},
            "search.stage_1.dim: expected a list of",
        ),
        ({"search": {"seed": {"low": 1, "high": 3}}, "sampler": "grid"}, "a grid needs choices"),
        ({"search": {"seed": [1]}, "trails": 3}, "trails is not a setting; known: search, params"),
    ],
)
def test_mistakes_in_a_file_end_in_one_message(project, settings, message):
    output = refused(project, write(project, "mistake", **settings))
    assert output.count("\n") == 1
    assert message in output


def test_a_file_of_nested_brackets_is_refused(project):
    path = write(project, "nested")
    path.write_text("search: " + 9999 * "[")
    assert "expected YAML with search and params, got" in refused(project, path)


def test_other_settings_need_another_name(project, untrained):
    run(project, "other", trials=1, search=DIMS)
    output = refused(project, write(project, "other", search={"seed": [0, 1, 2]}))
    assert "expected the settings with which this study began" in output


def test_trials_that_fail_end_in_the_reason(project, untrained):
    def fail(run):
        raise UserError("density: diverged")

    untrained(fail)
    path = write(project, "failing", trials=2, search={"seed": [0, 1]})
    reason = f"Error: {path}: no trial is complete: density: diverged\n"
    assert refused(project, path) == reason
    assert [t.state for t in opened(project, "failing").trials] == [TrialState.PRUNED] * 2


def test_a_database_that_cannot_be_used_is_a_message(project):
    path = write(project, "database", search={"seed": [0, 1]})
    output = refused(project, path, "--storage=sqlite:////no/such/folder/studies.db")
    assert output.startswith("Error: --storage: expected the URL of a database, got ")


def test_a_search_without_optuna_names_the_extra_to_install(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = write(project, "none", search={"seed": [0]})
    assert "pip install 'submanifold[search]'" in refused(project, path)


@pytest.mark.fault
def test_two_processes_share_a_study_and_repeat_the_trial_of_a_killed_one(new_project):
    project = new_project()
    path = write(project, "shared", sampler="grid", search={"stage_1.training.steps": [400, 401]})
    command = ("search", str(path), "--env=test")
    killed = project.start(*command)
    wait_for(lambda: states(project)["RUNNING"] == 1)
    other = project.start(*command)
    wait_for(lambda: states(project)["RUNNING"] == 2)
    wait_for(lambda: list(project.path.glob("data/06_models/*/last.safetensors")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    make_stale(project)
    output, _ = other.communicate(timeout=300)
    assert other.returncode == 0, output
    study = opened(project, "shared")
    assert states(project) == {"COMPLETE": 2, "FAIL": 1}
    (repeated,) = [t for t in study.trials if "failed_trial" in t.system_attrs]
    assert repeated.params == study.trials[0].params
    steps = {
        trial.params["stage_1.training.steps"]
        for trial in study.trials
        if trial.state == TrialState.COMPLETE
    }
    assert steps == {400, 401}


def states(project):
    try:
        return Counter(trial.state.name for trial in opened(project, "shared").trials)
    except Exception:  # the database is being created
        return Counter()
