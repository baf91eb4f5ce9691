"""Searches over several parameters: Optuna's studies, made by one process and by several."""

import contextlib
import os
import re
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click import ClickException
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from submanifold import cli
from submanifold.common.errors import UserError
from submanifold.common.files import is_alive
from submanifold.studies import search, studies
from submanifold.studies.spaces import Search, read_space
from submanifold.studies.studies import is_dominated

PARAMS = {"method": "PR-D", "device": "cpu"}
SPACES = {"stage_1.dim": "4..48", "phase_1.reconstruction.weight": "log:1.0..1000"}
COMMAND = (
    *("sweep", "--study=first", "--env=test", "--params=method=PR-D,device=cpu"),
    *(f"{name}={space}" for name, space in SPACES.items()),
)


LONG = "--params=method=PR-D,device=cpu,training.steps=100"  # the last of two counts


def opened(project, **how):
    """The study `first`, in this process."""
    what = Search("first", SPACES, PARAMS, project.path, "test")
    return studies.Study(replace(what, **how))


def runs_of(project):
    """MLflow's runs by trial."""
    tagged = [run for run in project.mlflow_runs() if "submanifold.trial" in run.data.tags]
    assert {run.data.tags["submanifold.study"] for run in tagged} <= {"first"}
    return {int(run.data.tags["submanifold.trial"]): run for run in tagged}


def is_stopped(pid):
    """Whether a process is gone, or is a zombie that nobody waits for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return not is_alive(pid)


def workers_at(project, count, process):
    """Wait until so many trials are being made, and give the processes' numbers by trial."""
    folder, deadline = project.path / "data/07_model_output/studies/first", time.monotonic() + 100
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        found = {}
        for lock in folder.glob("trial-*/.lock"):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                if owner := re.match(r"pid (\d+)", lock.read_text()):
                    found[int(lock.parent.name.removeprefix("trial-"))] = int(owner[1])
        if len(found) == count:
            return found
        time.sleep(0.05)


@pytest.mark.slow
def test_two_workers_make_a_study_whatever_happens_to_them(new_project):
    project = new_project()
    two = (*COMMAND, LONG, "--trials=2", "--workers=2")
    process = project.start(*two)
    first = workers_at(project, 2, process)
    killed, stopped = sorted(first)
    os.kill(first[killed], signal.SIGKILL)
    time.sleep(2 * studies.LOOK)  # to be told of it
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    flat = " ".join(output.split())
    assert flat.count("A worker has ended with exit code -9") == 1
    assert "1 of 2 go on" in flat
    assert "Traceback" not in output
    assert all(map(is_stopped, first.values())), "nobody is left"

    code, output = project.kedro(*two)
    assert code == 0, output
    study = opened(project, trials=2)
    assert study.is_made
    trials = {trial.number: trial for trial in study.optuna.get_trials()}
    again = {t.user_attrs["retry_of"]: t for t in trials.values() if "retry_of" in t.user_attrs}
    assert {killed, stopped} <= again.keys(), [trial.user_attrs for trial in trials.values()]
    for number, trial in again.items():
        assert trial.params == trials[number].params
    assert again[killed].user_attrs["lives"] == again[stopped].user_attrs["lives"] - 1
    ended = [t for number, t in trials.items() if number not in again]
    assert [t.state for t in ended] == [TrialState.COMPLETE] * 2

    runs = runs_of(project)
    for trial in ended:
        assert trial.user_attrs["run"] == runs[trial.number].info.run_id
        assert runs[trial.number].info.status == "FINISHED"
        assert runs[trial.number].data.params["stage_1.dim"] == str(trial.params["stage_1.dim"])
        test = [runs[trial.number].data.metrics[f"test.{each}"] for each in ("bits_per_dim", "mse")]
        assert trial.user_attrs["test"] == pytest.approx(test)
        assert trial.values != pytest.approx(test), "a study does not choose by test data"
    last = project.mlflow_runs()[-1]
    kept = {each.path for each in project.mlflow_client.list_artifacts(last.info.run_id)}
    assert kept == {"first.csv", "first.json", "first.html"}
    page = project.path / "data/08_reporting/sweeps/first.html"
    assert output.split()[-1] == str(page)
    assert "2 complete" in page.read_text()

    before = len(project.mlflow_runs())
    with project.session():
        spaces = [f"{name}={space}" for name, space in SPACES.items()]
        params = {**PARAMS, "training": {"steps": 100}}
        assert page == search.search("first", spaces, params, project.path, "test", trials=2)
    assert len(project.mlflow_runs()) == before + 1, "all it has done is to draw again"


@pytest.fixture
def study(new_project):
    """A study without trials, in this process."""
    project = new_project()
    with project.session():
        study = opened(project, trials=1)
        study.agree()
        yield project, study


def be_complete(study, dim, values, **attributes):
    """Add a trial as if it had been made."""
    params = {"stage_1.dim": dim, "phase_1.reconstruction.weight": 2.0}
    study.optuna.add_trial(create_trial(
        params=params, distributions=study.space, values=values, user_attrs=attributes
    ))  # fmt: skip


def test_a_study_chooses_by_validation_data_and_keeps_test_metrics_beside_them(monkeypatch):
    artifacts = {
        "metrics": {"bits_per_dim": {"value": 1.0}, "mse": {"value": 0.1}},
        "hierarchy": torch.nn.Identity(),
        "x_valid": np.zeros((3, 2), np.float32),
        "x_test": np.ones((4, 2), np.float32),
    }
    experiment = SimpleNamespace(
        load=artifacts.get,
        histories=list,
        parameters={"device": "cpu"},
        configuration=SimpleNamespace(experiment=SimpleNamespace(phases=())),
    )
    kept = {}
    trial = SimpleNamespace(set_user_attr=kept.__setitem__)
    monkeypatch.setattr(
        studies, "objectives", lambda model, events, device: (float(events.mean()), len(events))
    )
    assert studies._measure(trial, experiment) == (0.0, 3)
    assert kept["test"] == [1.0, 0.1]


def test_a_training_that_others_have_left_behind_is_pruned_and_kept(study):
    project, study = study
    for number in range(5):
        be_complete(study, 10 + number, [5.0, 0.01], validations={"phase_1": {8: [-9.0, 0.0]}})
    study.search = replace(study.search, trials=6)
    study.work()
    trial = study.optuna.get_trials()[-1]
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["why"].startswith("at step 8 of phase_1 at least half of 5 complete tr")
    run = runs_of(project)[5]
    assert run.info.status == "KILLED"
    assert run.data.tags["submanifold.pruned"] == trial.user_attrs["why"]
    curve = project.mlflow_client.get_metric_history(run.info.run_id, "phase_1.valid.mse")
    assert [point.step for point in curve] == [4, 8], "what it was pruned for is there"

    experiment = study.search.experiment(trial.params)
    experiment.run()
    assert experiment.load("phase_1.history")["steps_trained"] == 12 - 8, "nothing was lost"


def test_a_trial_is_not_pruned_where_that_is_not_wanted(study):
    _, study = study
    for number in range(5):
        be_complete(study, 10 + number, [-9.0, 0.0], validations={"phase_1": {8: [-9.0, 0.0]}})
    study.search = replace(study.search, trials=6, prune=False)
    study.work()
    assert [trial.state for trial in study.optuna.get_trials()] == [TrialState.COMPLETE] * 6
    assert [trial.number for trial in study.optuna.best_trials] == [0, 1, 2, 3, 4]
    kept = study.optuna.get_trials()[-1].user_attrs["validations"]["phase_1"]
    assert list(kept) == ["4", "8", "12"], "others are compared with it"


def test_a_combination_that_cannot_work_is_a_failed_trial(study):
    project, study = study
    study.space["stage_1.dim"] = IntDistribution(190, 199)
    study.optuna.enqueue_trial({"stage_1.dim": 199, "phase_1.reconstruction.weight": 1.0})
    study.work()
    (trial,) = study.optuna.get_trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["why"].startswith("stage_1.dim: expected 1 to 192")
    assert not (project.path / "data/06_models").exists()
    table = study.drawn.load("study_table")
    assert table.loc[0, ["state", "why"]].tolist() == ["failed", trial.user_attrs["why"]]


def test_a_worker_ends_when_one_trial_after_the_other_fails(study, monkeypatch):
    def fail(experiment):
        raise RuntimeError("the moon is full")

    _, study = study
    monkeypatch.setattr(studies.Experiment, "run", fail)
    study.search = replace(study.search, trials=9)
    with pytest.raises(UserError, match="3 trials in a row have failed"):
        study.work()
    why = {trial.user_attrs["why"] for trial in study.optuna.get_trials()}
    assert why == {"RuntimeError: the moon is full"}
    assert len(study.optuna.get_trials()) == 3


def test_a_trial_of_which_processes_die_is_given_up(study):
    _, study = study
    first = study.optuna.ask(study.space)  # nobody holds its lock
    for lives in (2, 1):
        with study._next() as again:
            assert again.params == first.params
            assert again.user_attrs["lives"] == lives
    with study._next() as none:
        assert none is None, "and counts as made"
    assert study.is_made


def test_another_search_or_experiment_under_the_same_name_is_refused(study, monkeypatch):
    project, _ = study
    for changed, said in [
        (["stage_1.dim=4..50", COMMAND[-1]], "searches stage_1.dim=4..48, not 4..50."),
        ([*COMMAND[-2:], "seed=0,1"], "searches seed=nothing, not 0,1."),
        ([*COMMAND[-2:], "--params=method=PR-D,device=cpu,seed=3"], "is of seed=0, not 3."),
        ([*COMMAND[-2:], "--params=method=EE-M,device=cpu"], "is of method=PR-D, not EE-M; "),
    ]:
        message = mistake(monkeypatch, project, *COMMAND[:4], *changed)
        assert f"study=first {said}" in message
        assert "another name with --study" in message


def mistake(monkeypatch, project, *arguments):
    monkeypatch.chdir(project.path)
    with pytest.raises((ClickException, SystemExit)) as caught:
        CliRunner().invoke(cli.cli, arguments, standalone_mode=False, catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


DIM = "stage_1.dim=4..24"
A_STUDY = ("--study=new", DIM)


@pytest.mark.parametrize(("arguments", "said"), [
    (("--study=new", "stage_1.delt=4..24"), "stage_1.delt is not a setting; known: flow"),
    (("--study=new", "stage_1.dim=193..199"), "No combination that was drawn can work, such as st"),
    (("--study=new", "stage_1.dim=24..4"), "stage_1.dim=24..4 cannot be searched: 24 is not below"),
    (("--study=new", "stage_1.dim=4..4"), "4 is not below 4"),
    (("--study=new", "stage_1.dim=4..many"), "the ends of a range are numbers. Allowed: 50..500"),
    (("--study=new", "seed=0..inf"), "the ends of a range are numbers"),
    (("--study=new", "stage_1.dim=log:0..9"), "a logarithmic scale begins above 0"),
    (("--study=new", "stage_1.dim=log:4,8"), "it is neither a range nor values"),
    (("--study=new", "stage_1.dim=lin:4"), "it is one value, to be given with --params"),
    (("--study=new", "stage_1.dim=[4,8]"), "it is one value, to be given with --params"),
    (("--study=new", "stage_1.dim={a: 1},4"), "it is neither a range nor values"),
    (("--study=new", "stage_1.dim=[4,8"), "it cannot be read as YAML"),
    (("--study=new", "stage_1.dim"), "'stage_1.dim' does not say what to search. Write <param"),
    (("--study=new", "stage_1.dim="), "'stage_1.dim=' does not say what to search"),
    (("--study=new", DIM, DIM), "stage_1.dim is searched twice"),
    (("--study=a/b", DIM), "study=a/b cannot be used: it names files"),
    (("--study=", DIM), "study= cannot be used"),
    ((*A_STUDY, "--params=stage_1.dim=9"), "stage_1.dim is searched, and given with --params"),
    ((*A_STUDY, "--params=method=H-XX"), "method=H-XX is not known"),
    ((*A_STUDY, "--workers=0"), "0 is not in the range x>=1"),
    ((*A_STUDY, "--trials=0"), "0 is not in the range x>=1"),
    ((*A_STUDY, "--sampler=best"), "'best' is not one of 'tpe', 'nsga2', 'random'"),
    ((DIM, "--params=method=PR-D"), "stage_1.dim=4..24 is of a study. Give it a name with --study"),
    (("stage_1.dim", "4", "--workers=2"), "--workers is of a study. Give it a name with --study"),
    (("stage_1.dim",), "Missing argument 'VALUES...'"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_made(project, monkeypatch, arguments, said):
    defaults = () if any(each.startswith("--params") for each in arguments) else (
        "--params=method=PR-D,device=cpu",
    )  # fmt: skip
    with project.session():
        message = mistake(monkeypatch, project, "sweep", "--env=test", *arguments, *defaults)
    assert said in message
    assert not (project.path / "data/06_models").exists()


def test_spaces_are_read_as_they_are_written():
    for text, space in {
        "50..500": IntDistribution(50, 500),
        "log:1..64": IntDistribution(1, 64, log=True),
        "0.1..5": FloatDistribution(0.1, 5),
        "-1..1.0": FloatDistribution(-1, 1),
        "log:1e-4..1e-2": FloatDistribution(1e-4, 1e-2, log=True),
        "PR-D, EE-M": CategoricalDistribution(["PR-D", "EE-M"]),
        "null,3,0.5,true": CategoricalDistribution([None, 3, 0.5, True]),
        "[8, 4],[4]": CategoricalDistribution(["[8, 4]", "[4]"]),
    }.items():
        assert read_space("name", text) == space


def test_a_list_is_given_to_the_experiment_as_one(project):
    what = Search("first", {}, PARAMS, project.path, "test")
    experiment = what.experiment({"stage_1.flow.steps": "[2, 1]", "seed": 4})
    assert experiment.parameters["stage_1"]["flow"]["steps"] == [2, 1]
    assert experiment.parameters["seed"] == 4


@pytest.mark.parametrize(("point", "peers", "dominated"), [
    ([2, 2], [[1, 1]] * 5, True),
    ([2, 2], [[1, 1]] * 4, False),  # too few to know
    ([2, 2], [[1, 1]] * 3 + [[3, 1]] * 3, True),
    ([2, 2], [[1, 1]] * 3 + [[3, 1]] * 4, False),
    ([2, 2], [[1, 3], [3, 1]] * 4, False),  # a compromise of its own
    ([2, 2], [[2, 1]] * 5, False),
])  # fmt: skip
def test_what_half_of_the_others_beat_in_both_is_dominated(point, peers, dominated):
    assert is_dominated(point, peers) == dominated
