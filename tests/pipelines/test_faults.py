"""Runs that are killed or fail, read-only disks, corrupted files, and failures of MLflow."""

import contextlib
import json
import logging
import os
import signal
import sqlite3
import time

import mlflow
import pytest
import torch
from click import ClickException
from click.exceptions import Exit
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from submanifold.common.errors import UserError
from submanifold.pipelines.evaluation import nodes
from submanifold.runs import store, tracking
from submanifold.training import trainer
from submanifold.training.checkpoint import EARLIER, LAST

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


def last_step(project):
    """Step of stage 2's last checkpoint, or of the one before while it is being replaced."""
    steps = [0]
    for folder in project.path.glob("data/06_models/photos-stage_2-*"):
        for name in (LAST, EARLIER):
            with (
                contextlib.suppress(OSError, RuntimeError, SafetensorError),
                safe_open(folder / name, "pt") as file,
            ):
                steps.append(json.loads(file.metadata()["state"])["step"])
    return max(steps)


def interrupt(project, number):
    """Start a run, and send a signal after a new checkpoint of stage 2; return its step."""
    before = last_step(project)
    process = project.start(*COMMAND)
    deadline = time.monotonic() + 100
    while last_step(project) <= before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert before < last_step(project) < STEPS
    return last_step(project)


@pytest.mark.parametrize("signals", [
    [signal.SIGTERM],
    pytest.param([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], marks=pytest.mark.slow),
], ids=lambda signals: " ".join(each.name for each in signals))  # fmt: skip
def test_interrupted_run_resumes_with_the_same_result(new_project, project, signals):
    resumed = new_project()
    for count, number in enumerate(signals):
        step = interrupt(resumed, number)
        *before, last = statuses(resumed)
        assert before == ["KILLED"] * count, "a later run marks killed ones"
        assert last == ("RUNNING" if number == signal.SIGKILL else "KILLED")
    run = resumed.run(until="metrics", **LONG)
    assert statuses(resumed) == ["KILLED"] * len(signals) + ["FINISHED"]
    assert run.steps == {"stage_1": 0, "stage_2": STEPS - step}

    other = project.run(until="metrics", **LONG)
    for name in ("stage_1.model", "stage_2.model", "hierarchy"):
        tensors, expected = load_file(run.path(name)), load_file(other.path(name))
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in tensors)
    assert {**run.load("metrics"), "seconds": 0} == {**other.load("metrics"), "seconds": 0}
    assert list(run.curve("stage_2.valid.loss")) == list(range(EVERY, STEPS + 1, EVERY))


@pytest.mark.parametrize(("error", "raised"), [
    (RuntimeError("a defect"), RuntimeError),
    (UserError("a mistake"), ClickException),
])  # fmt: skip
def test_failed_run_is_marked_and_can_be_repeated(project, finished, monkeypatch, error, raised):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(nodes, "measure", fail)
    params = {"until": "metrics", "evaluation": {"samples": 32}}
    with pytest.raises(raised, match=str(error)):
        project.run(**params)
    monkeypatch.undo()
    assert project.run(**params).steps == {"stage_1": 0, "stage_2": 0}
    assert statuses(project)[-2:] == ["FAILED", "FINISHED"]


# ---- disks


def test_finished_read_only_experiment_is_found(project, finished, read_only, caplog):
    runs = len(project.mlflow_runs())
    read_only(project.path / "data")
    with caplog.at_level(logging.INFO), pytest.raises(Exit) as caught:
        project.run()
    assert caught.value.exit_code == 0
    assert "All outputs exist and are read-only" in caplog.text
    assert f"The report is {finished.path('report')}" in caplog.text
    assert len(project.mlflow_runs()) == runs
    with pytest.raises(ClickException, match=r"mlflow\.db cannot be used .*readonly"):
        project.run(seed=3)


def test_read_only_data_can_be_trained_on(project, finished, read_only):
    read_only(project.path / "data" / "03_primary")
    assert project.run(seed=4, until="stage_1.model").steps == {"stage_1": 12}


def test_corrupted_test_images_are_prepared_again(project, finished):
    path, before = finished.path("x_test"), finished.load("metrics")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 128
    path.write_bytes(content)
    finished.path("metrics").unlink()
    again = project.run(only_missing_outputs=True)
    assert path.read_bytes() != bytes(content)
    assert again.load("metrics")["bits_per_dim"] == before["bits_per_dim"]


# ---- MLflow


def test_locked_database_ends_a_run_before_it_starts(project, finished, monkeypatch):
    before = list((project.path / "data").rglob("*"))
    monkeypatch.setattr(store, "SQLITE_TIMEOUT", 0.1)
    with sqlite3.connect(project.path / "data" / "mlflow.db", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(ClickException, match=r"^mlflow\.uri=.*\(database is locked\)"):
            project.run(seed=8)
    assert list((project.path / "data").rglob("*")) == before


def test_missing_server_ends_a_run_before_it_starts(new_project, monkeypatch):
    project = new_project()
    uri = "http://127.0.0.1:9"
    (project.path / "conf" / "test" / "mlflow.yml").write_text(f"uri: {uri}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(ClickException, match=rf"^mlflow\.uri={uri} cannot be used \(.*refused"):
            project.run(until="x_train")
    finally:
        mlflow.set_tracking_uri(before)
    assert os.listdir(project.path / "data") == ["mlflow.db"]


class Outage:
    """Makes all methods of MLflow's store fail while ``down``."""

    def __init__(self, monkeypatch):
        self.down = False
        for name, method in vars(SqlAlchemyStore).items():
            if not name.startswith("_") and callable(method) and name != "shut_down_async_logging":
                monkeypatch.setattr(SqlAlchemyStore, name, self.failing(method))

    def failing(self, method):
        def call(*args, **kwargs):
            if self.down:
                raise MlflowException("database is locked")
            return method(*args, **kwargs)

        return call


@pytest.fixture
def outage(monkeypatch):
    """An outage that begins after step 3 of stage 1."""
    monkeypatch.setattr(tracking, "RETRY_INTERVAL", 0.1)
    tracking._warn.cache_clear()
    outage = Outage(monkeypatch)

    def fail(step, settings, lr_factor=trainer.lr_factor):
        outage.down = step > 3
        return lr_factor(step, settings)

    monkeypatch.setattr(trainer, "lr_factor", fail)
    return outage


def test_curves_are_complete_after_an_outage(project, finished, outage, caplog, monkeypatch):
    def evaluate(*args, measure=nodes.measure, **kwargs):
        outage.down = False
        return measure(*args, **kwargs)

    monkeypatch.setattr(nodes, "measure", evaluate)
    run = project.run(seed=5, until="metrics")
    assert run.mlflow.info.status == "FINISHED"
    for phase in ("stage_1", "stage_2"):
        for kind, rows in run.load(f"{phase}.history").items():
            if kind in ("train", "valid"):
                logged = run.curve(f"{phase}.{kind}.loss")
                assert logged == {row["step"]: row["loss"] for row in rows}
    assert caplog.text.count("The run continues") <= 1
    assert "have not reached" not in caplog.text


def test_run_without_mlflow_writes_all_its_files(project, finished, outage, caplog):
    with project.session(seed=6) as session:
        session.run(pipeline_names=["hierarchical"])
    outage.down = False
    assert project.catalog(seed=6).exists("report")
    assert caplog.text.count("cannot be used now (database is locked). The run continues") == 1
    assert "values of the training curves have not reached MLflow" in caplog.text


def test_mistake_during_an_outage_is_reported(project, finished, outage, monkeypatch):
    def fail(*args, **kwargs):
        outage.down = True
        raise UserError("a mistake")

    monkeypatch.setattr(nodes, "measure", fail)
    with pytest.raises(ClickException, match="a mistake"):
        project.run(evaluation={"samples": 16})
