"""Runs that are killed or fail, read-only disks, corrupted files, and failures of MLflow."""

import contextlib
import json
import logging
import os
import signal
import socket
import sqlite3
import threading

import mlflow
import pytest
import torch
from click import ClickException
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file

from conftest import wait_for
from submanifold.common.errors import UserError
from submanifold.inference.records import read_records
from submanifold.pipelines.evaluation import nodes
from submanifold.runs.runner import RankRunner

pytestmark = pytest.mark.fault

STEPS, EVERY = 300, 20
LONG = {"stage_2": {"training": {"steps": STEPS, "validate_every": EVERY}}}
COMMAND = (
    *("run", "--env=test", "--pipeline=hierarchical"),
    f"--params=device=cpu,stage_2.training.steps={STEPS},stage_2.training.validate_every={EVERY}",
)


@pytest.fixture(scope="module")
def finished(project):
    return project.run()


def statuses(project):
    return [run.info.status for run in project.mlflow_runs()]


# ---- interrupted runs


def interrupt(project, number):
    """Start a run, and send a signal after a new checkpoint of stage 2; return its step."""
    before = project.last_step("stage_2")
    process = project.start(*COMMAND)
    wait_for(lambda: project.last_step("stage_2") > before, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert before < project.last_step("stage_2") < STEPS
    return project.last_step("stage_2")


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        pytest.param([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], marks=pytest.mark.slow),
    ],
    ids=lambda signals: " ".join(each.name for each in signals),
)
def test_interrupted_run_resumes_with_the_same_result(new_project, project, signals):
    resumed = new_project()
    for number in signals:
        step = interrupt(resumed, number)
        state = "KILLED" if number == signal.SIGINT else "RUNNING"
        assert statuses(resumed)[-1] == state
        assert [record.state(resumed.path) for record in read_records(resumed.path)] == [
            "interrupted"
        ]
    run = resumed.run(until="metrics", **LONG)
    assert statuses(resumed)[-1] == "FINISHED"
    assert run.steps == {"stage_1": 0, "stage_2": STEPS - step}

    assert_equal_results(run, project.run(until="metrics", **LONG))
    steps = {row["step"] for row in run.load("stage_2.history")["valid"]}
    assert steps == set(range(EVERY, STEPS + 1, EVERY))


def assert_equal_results(run, other):
    for name in ("stage_1.model", "stage_2.model", "hierarchy"):
        tensors, expected = load_file(run.path(name)), load_file(other.path(name))
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in tensors)
    assert {**run.load("metrics"), "seconds": 0} == {**other.load("metrics"), "seconds": 0}


@pytest.mark.slow
def test_a_run_that_is_started_twice_has_the_result_of_one(new_project, project):
    twice = new_project()
    processes = [twice.start(*COMMAND) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    run = twice.run(until="metrics", only_missing_outputs=True, **LONG)
    assert run.mlflow is None, "everything exists"
    assert_equal_results(run, project.run(until="metrics", **LONG))


def test_run_whose_results_mlflow_does_not_have_is_logged_again(project):
    params = {"evaluation": {"samples": 31}}
    project.run(**params)
    *_, killed = project.mlflow_runs()
    client = project.mlflow_client
    for name in [name for name in killed.data.tags if name.startswith("keys.")]:
        client.delete_tag(killed.info.run_id, name)
    client.update_run(killed.info.run_id, "RUNNING")
    for _ in range(2):  # the second finds the MLflow run of the first
        project.run(**params, only_missing_outputs=True)
        assert statuses(project)[-2:] == ["RUNNING", "FINISHED"]
    *_, again = project.mlflow_runs()
    for name in ("core/BPD", "core/KID", "detail/mse"):
        assert again.data.metrics[name] == killed.data.metrics[name]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("a defect"), RuntimeError),
        (UserError("a mistake"), ClickException),
    ],
)
def test_failed_run_is_marked_and_can_be_repeated(project, finished, monkeypatch, error, raised):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(nodes, "measure", fail)
    params = {"until": "metrics", "evaluation": {"samples": 32}}
    with pytest.raises(raised, match=str(error)):
        project.run(**params)
    monkeypatch.undo()
    assert set(project.run(**params).steps.values()) == {0}
    assert statuses(project)[-2:] == ["FAILED", "FINISHED"]


# ---- disks


def test_finished_read_only_experiment_is_found(project, finished, read_only, caplog):
    runs = len(project.mlflow_runs())
    read_only(project.path / "data")
    with caplog.at_level(logging.INFO):
        project.run(only_missing_outputs=True)
    assert f"The report is {finished.path('report')}" in caplog.text
    assert len(project.mlflow_runs()) == runs
    with pytest.raises(OSError, match="Read-only file system"):
        project.run(seed=3)


def test_damaged_files_are_computed_again(project, finished, caplog):
    names = ("metrics", "stage_2.history", "samples", "scored_events", "schedule")
    expected = {name: finished.path(name).read_bytes() for name in names}
    train = finished.path("x_train").read_bytes()
    finished.path("x_train").write_bytes(train[:-1] + bytes([train[-1] ^ 1]))
    for name, content in expected.items():
        finished.path(name).write_bytes(content[: len(content) // 2])
    for name in ("report", "baselines", "hierarchy"):
        finished.path(name).unlink()
    project.run(only_missing_outputs=True)
    assert finished.path("x_train").read_bytes() == train
    for name in names:
        assert f"{finished.path(name)}: expected a whole file" in caplog.text
        if name not in ("metrics", "stage_2.history", "schedule"):  # which have durations
            assert finished.path(name).read_bytes() == expected[name]
    assert finished.load("metrics")["mse"] == json.loads(expected["metrics"])["mse"]


def test_read_only_data_can_be_trained_on(project, finished, read_only):
    read_only(project.path / "data" / "03_primary")
    run = project.run(seed=4, until="stage_1.model", only_missing_outputs=True)
    assert run.steps == {"stage_1": 12}


# ---- MLflow


def test_locked_database_ends_a_run_before_it_starts(project, finished, monkeypatch):
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "1")
    before = list((project.path / "data").rglob("*.npy"))
    with sqlite3.connect(project.path / "data" / "mlflow.db", isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(ClickException, match=r"^mlflow\.yml: .*database is locked"),
            project.session(seed=8) as session,
        ):
            session.run(pipeline_names=["hierarchical"], runner=RankRunner())
    assert list((project.path / "data").rglob("*.npy")) == before


def test_missing_server_ends_a_run_before_it_starts(new_project, monkeypatch):
    project, server = new_project(), socket.create_server(("127.0.0.1", 0))
    requests = []

    def refuse():
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = server.accept()
                connection.close()
                requests.append(connection)

    thread = threading.Thread(target=refuse)
    thread.start()
    uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    settings = f"server: {{mlflow_tracking_uri: '{uri}'}}\n"
    (project.path / "conf" / "test" / "mlflow.yml").write_text(settings)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(ClickException, match=rf"^mlflow\.yml: .*got {uri} \("):
            project.run(until="x_train")
    finally:
        mlflow.set_tracking_uri(before)
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
    assert len(requests) == 3
    assert os.listdir(project.path / "data") == ["mlflow.db"]


def test_the_password_of_a_server_is_not_shown(project, monkeypatch):
    settings = project.path / "conf" / "test" / "mlflow.yml"
    settings.write_text("server: {mlflow_tracking_uri: 'http://me:secret@127.0.0.1:9'}\n")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(ClickException, match="got one with credentials") as caught:
            project.run(until="x_train")
    finally:
        mlflow.set_tracking_uri(before)
        settings.unlink()
    assert "secret" not in caught.value.format_message()


def test_a_training_continues_without_mlflow(project, finished, caplog, monkeypatch):
    def fail(*args):
        raise MlflowException("database is locked")

    monkeypatch.setattr("mlflow.log_metrics", fail)
    run = project.run(seed=5, until="stage_2.model")
    assert run.steps == {"stage_1": 12, "stage_2": 12}
    assert "MLflow has not received the losses of step 4 (database is locked)" in caplog.text
