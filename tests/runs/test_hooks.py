import os
import signal
import socket
import subprocess
import sys
import threading

import mlflow
import pytest
from click import ClickException
from kedro.pipeline import Node, Pipeline

from submanifold.runs.hooks.pipelines import _check_catalog
from submanifold.runs.mlflow_run import _close_orphans, _exit_on_signal, _numbers


def test_only_numbers_of_the_metrics_are_logged():
    metrics = {
        "bits_per_dim": {"value": 4.5, "low": 4.4, "high": 4.6, "n": 10},
        "fid": {"value": None, "why": "not measured: no GPU"},
        "dims": [192, 24],
        "baselines": {"pca": {"mse": {"value": 0.1}}, "gaussian": None},
    }
    assert _numbers(metrics) == {
        "test.bits_per_dim": 4.5,
        "test.bits_per_dim.low": 4.4,
        "test.bits_per_dim.high": 4.6,
        "test.bits_per_dim.n": 10,
        "test.baselines.pca.mse": 0.1,
    }


def test_missing_catalog_entries_are_reported_in_one_line():
    pipeline = Pipeline([Node(lambda *x: x, list("abcd"), "e", name="any")])
    entries = pipeline.datasets()
    _check_catalog(pipeline, entries)
    with pytest.raises(ClickException, match=r"^conf/base/catalog\.yml: .* none for c\. Res"):
        _check_catalog(pipeline, entries - {"c"})
    with pytest.raises(ClickException, match=r"none for \S+, \S+, \S+ and \d+ more\. Restore"):
        _check_catalog(pipeline, set())


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def test_only_runs_of_dead_processes_of_this_machine_are_marked_killed(tracking):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here, elsewhere, dead, alive = socket.gethostname(), "elsewhere", child.pid, os.getpid()
    experiment = tracking.create_experiment("some")

    def running(**owner):
        tags = {f"submanifold.{name}": str(value) for name, value in owner.items()}
        return tracking.create_run(experiment, tags=tags).info.run_id

    runs = {
        "dead": running(host=here, pid=dead),
        "alive": running(host=here, pid=alive),
        "elsewhere": running(host=elsewhere, pid=dead),
        "another program's": running(),
        "done": running(host=here, pid=dead),
    }
    tracking.set_terminated(runs["done"], "FINISHED")
    _close_orphans(experiment)
    assert {name: tracking.get_run(run).info.status for name, run in runs.items()} == {
        "dead": "KILLED",
        "alive": "RUNNING",
        "elsewhere": "RUNNING",
        "another program's": "RUNNING",
        "done": "FINISHED",
    }


def test_run_in_a_thread_does_not_set_signal_handlers(project):
    errors = []

    def run():
        try:
            project.run("data")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
    assert project.mlflow_runs()[-1].info.status == "FINISHED"


def test_sigterm_ends_a_run_with_an_exit_code(project):
    before = signal.getsignal(signal.SIGTERM)
    with project.session() as session:
        session.run(pipeline_names=["data"])
        assert signal.getsignal(signal.SIGTERM) is _exit_on_signal
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as caught:
        _exit_on_signal(15, None)
    assert caught.value.code == 143
