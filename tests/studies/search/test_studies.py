import contextlib
import os
import re
import signal
import sys
import time

import pytest
from click import ClickException
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from submanifold import cli
from submanifold.common.errors import UserError
from submanifold.common.files import is_alive
from submanifold.studies.search import study as study_module
from submanifold.studies.search.spaces import read_space
from submanifold.studies.search.study import Study, is_dominated

PARAMS = {"method": "PR-D", "device": "cpu"}
SPACES = {"stage_1.dim": "4..48", "phase_1.reconstruction.weight": "log:1.0..1000"}
COMMAND = (
    *("sweep", "--study=first", "--env=test", "--params=method=PR-D,device=cpu"),
    *(f"{name}={space}" for name, space in SPACES.items()),
)

LONG = "--params=method=PR-D,device=cpu,training.steps=100"  # the last of two counts


def opened(project, trials):
    """Open the study `first` in this process."""
    return Study("first", SPACES, PARAMS, project.path, "test", trials)


def runs_of(project):
    """MLflow runs by trial."""
    tagged = [run for run in project.mlflow_runs() if "submanifold.trial" in run.data.tags]
    return {int(run.data.tags["submanifold.trial"]): run for run in tagged}


def is_stopped(pid):
    """Whether a process has ended; it may be a zombie."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return not is_alive(pid)


def workers_at(project, count, process):
    """Wait until this number of trials run, and return the process ids by trial."""
    folder, deadline = project.path / "data/07_model_output/studies/first", time.monotonic() + 100
    found = {}
    while len(found) != count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found = {}
        for lock in folder.glob("trial-*/.lock"):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                if owner := re.match(r"pid (\d+)", lock.read_text()):
                    found[int(lock.parent.name.removeprefix("trial-"))] = int(owner[1])
    return found


@pytest.mark.slow
def test_a_study_survives_killed_and_interrupted_workers(new_project):
    project = new_project()
    two = (*COMMAND, LONG, "--trials=2", "--workers=2")
    process = project.start(*two)
    first = workers_at(project, 2, process)
    killed, stopped = sorted(first)
    os.kill(first[killed], signal.SIGKILL)
    time.sleep(2 * study_module.POLL)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    flat = " ".join(output.split())
    assert flat.count("A worker ended with exit code -9") == 1
    assert "1 of 2 workers are running" in flat
    assert "Traceback" not in output
    assert all(map(is_stopped, first.values())), "no worker is left"

    code, output = project.kedro(*two)
    assert code == 0, output
    study = opened(project, trials=2)
    assert study.is_finished
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
        assert trial.values != pytest.approx(test), "the objectives are those of validation data"
    last = project.mlflow_runs()[-1]
    kept = {each.path for each in project.mlflow_client.list_artifacts(last.info.run_id)}
    assert kept == {"first.csv", "first.json", "first.html"}
    page = project.path / "data/08_reporting/sweeps/first.html"
    assert output.split()[-1] == str(page)
    assert "2 complete" in page.read_text()


@pytest.fixture
def study(new_project):
    """A study without trials, in this process."""
    project = new_project()
    with project.session():
        study = opened(project, trials=1)
        study.store_search()
        yield project, study


def add_complete(study, dim, values, **attributes):
    """Add a trial as if it had been made."""
    params = {"stage_1.dim": dim, "phase_1.reconstruction.weight": 2.0}
    study.optuna.add_trial(create_trial(
        params=params, distributions=study.space, values=values, user_attrs=attributes
    ))  # fmt: skip


def test_a_dominated_training_is_pruned_and_its_checkpoint_kept(study):
    project, study = study
    for number in range(5):
        add_complete(study, 10 + number, [5.0, 0.01], validations={"stage_1": {8: [-9.0, 0.0]}})
    study.trials = 6
    study.work()
    trial = study.optuna.get_trials()[-1]
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs["why"].startswith("at step 8 of stage_1 at least half of 5 complete tr")
    run = runs_of(project)[5]
    assert run.info.status == "KILLED"
    assert run.data.tags["submanifold.pruned"] == trial.user_attrs["why"]
    curve = project.mlflow_client.get_metric_history(run.info.run_id, "stage_1.valid.mse")
    assert [point.step for point in curve] == [4, 8], "what it was pruned for is there"

    experiment = study.experiment(trial.params)
    experiment.run()
    assert experiment.load("stage_1.history")["steps_trained"] == 12 - 8, "nothing was lost"


def test_pruning_can_be_disabled(study):
    _, study = study
    for number in range(5):
        add_complete(study, 10 + number, [-9.0, 0.0], validations={"stage_1": {8: [-9.0, 0.0]}})
    study.trials, study.prune = 6, False
    study.work()
    assert [trial.state for trial in study.optuna.get_trials()] == [TrialState.COMPLETE] * 6
    assert [trial.number for trial in study.optuna.best_trials] == [0, 1, 2, 3, 4]
    kept = study.optuna.get_trials()[-1].user_attrs["validations"]["stage_1"]
    assert list(kept) == ["4", "8", "12"], "others are compared with it"


def test_invalid_parameters_are_a_failed_trial(study):
    project, study = study
    study.space["stage_1.dim"] = IntDistribution(190, 199)
    study.optuna.enqueue_trial({"stage_1.dim": 199, "phase_1.reconstruction.weight": 1.0})
    study.work()
    (trial,) = study.optuna.get_trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["why"].startswith("stage_1.dim: expected 1 to 192")
    assert not (project.path / "data/06_models").exists()
    table = study.results.load("study_table")
    assert table.loc[0, ["state", "why"]].tolist() == ["failed", trial.user_attrs["why"]]


def test_a_worker_stops_after_three_failures_in_a_row(study, monkeypatch):
    def fail(experiment):
        raise RuntimeError("out of luck")

    _, study = study
    monkeypatch.setattr(study_module.CachedRun, "run", fail)
    study.trials = 9
    with pytest.raises(UserError, match="3 trials in a row have failed"):
        study.work()
    why = {trial.user_attrs["why"] for trial in study.optuna.get_trials()}
    assert why == {"RuntimeError: out of luck"}
    assert len(study.optuna.get_trials()) == 3


def test_a_trial_during_which_processes_die_is_repeated_twice(study):
    _, study = study
    first = study.optuna.ask(study.space)  # nobody holds its lock
    for lives in (2, 1):
        with study._next_trial() as again:
            assert again.params == first.params
            assert again.user_attrs["lives"] == lives
    with study._next_trial() as none:
        assert none is None, "and counts as made"
    assert study.is_finished


def test_another_search_or_experiment_under_the_same_name_is_rejected(study, monkeypatch):
    project, _ = study
    for changed, text in [
        (["stage_1.dim=4..50", COMMAND[-1]], "stage_1.dim=4..48, got 4..50."),
        ([*COMMAND[-2:], "seed=0,1"], "seed=0, got 0,1."),
        ([*COMMAND[-2:], "--params=method=PR-D,device=cpu,seed=3"], "seed=0, got 3."),
        ([*COMMAND[-2:], "--params=method=EE-M,device=cpu"], "method=PR-D, got EE-M; "),
    ]:
        message = mistake(monkeypatch, project, *COMMAND[:4], *changed)
        assert f"study=first: expected {text}" in message


def mistake(monkeypatch, project, *arguments):
    monkeypatch.chdir(project.path)
    with pytest.raises((ClickException, SystemExit)) as caught:
        CliRunner().invoke(cli.cli, arguments, standalone_mode=False, catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


DIM = "stage_1.dim=4..24"


@pytest.mark.parametrize(("arguments", "text"), [
    (("--study=new", "stage_1.delt=4..24"), "stage_1.delt is not a setting; known: flow"),
    (("--study=new", "stage_1.dim=193..199"), "expected valid combinations, got none: st"),
    (("--study=new", "stage_1.dim"), "stage_1.dim: expected <parameter>=<space>"),
    (("--study=new", DIM, DIM), "stage_1.dim: expected one search space, got two"),
    (("--study=a/b", DIM), "study=a/b"),
    (("--study=new", DIM, "--params=stage_1.dim=9"), "expected a search space or --params"),
    (("--study=new", DIM, "--params=method=H-XX"), "got H-XX"),
    ((DIM, "--params=method=PR-D"), "--study=<name>"),
    (("stage_1.dim",), "Missing argument 'VALUES...'"),
])  # fmt: skip
def test_mistakes_are_reported_before_anything_is_trained(project, monkeypatch, arguments, text):
    with project.session():
        message = mistake(
            monkeypatch, project, "sweep", "--env=test", "--params=method=PR-D,device=cpu",
            *arguments,
        )  # fmt: skip
    assert text in message
    assert not (project.path / "data/06_models").exists()


def test_studies_without_optuna_name_the_extra_to_install(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with project.session():
        message = mistake(monkeypatch, project, "sweep", "--study=new", DIM)
    assert "pip install 'submanifold[search]'" in message


@pytest.mark.parametrize(("text", "reason"), [
    ("8..4", "low"),
    ("4..many", "could not convert string to float"),
    ("0..inf", "finite"),
    ("log:0..9", "low"),
    ("log:4,8", "neither a range nor a list"),
    ("{a: 1},4", "neither a range nor a list"),
    ("[4,8]", "a single value"),
    ("[4,8", "not valid YAML"),
])  # fmt: skip
def test_invalid_spaces_are_rejected_with_the_reason(text, reason):
    with pytest.raises(UserError, match=reason):
        read_space("stage_1.dim", text)


@pytest.mark.parametrize(("text", "space"), [
    ("50..500", IntDistribution(50, 500)),
    ("log:1..64", IntDistribution(1, 64, log=True)),
    ("-1..1.0", FloatDistribution(-1, 1)),
    ("log:1e-4..1e-2", FloatDistribution(1e-4, 1e-2, log=True)),
    ("PR-D, EE-M", CategoricalDistribution(["PR-D", "EE-M"])),
    ("null,3,0.5,true", CategoricalDistribution([None, 3, 0.5, True])),
    ("[8, 4],[4]", CategoricalDistribution(["[8, 4]", "[4]"])),
])  # fmt: skip
def test_search_spaces_become_optuna_distributions(text, space):
    assert read_space("name", text) == space


def test_a_list_is_passed_to_the_experiment_as_a_list(study):
    _, study = study
    experiment = study.experiment({"stage_1.flow.steps": "[2, 1]", "seed": 4})
    assert list(experiment.settings.model.stages[0].flow.steps) == [2, 1]
    assert experiment.settings.seed == 4


@pytest.mark.parametrize(("point", "peers", "dominated"), [
    ([2, 2], [[1, 1]] * 5, True),
    ([2, 2], [[1, 1]] * 4, False),  # too few to know
    ([2, 2], [[1, 1]] * 3 + [[3, 1]] * 3, True),
    ([2, 2], [[1, 1]] * 3 + [[3, 1]] * 4, False),
    ([2, 2], [[1, 3], [3, 1]] * 4, False),  # a compromise of its own
    ([2, 2], [[2, 1]] * 5, False),
])  # fmt: skip
def test_a_point_that_half_of_the_peers_beat_in_both_is_dominated(point, peers, dominated):
    assert is_dominated(point, peers) == dominated
