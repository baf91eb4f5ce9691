"""Runs on read-only disks, with corrupted files, and without MLflow."""

import logging
import sqlite3

import mlflow
import pytest
from click import ClickException
from click.exceptions import Exit
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from submanifold.common.errors import UserError
from submanifold.pipelines.evaluation import nodes
from submanifold.runs import store, tracking
from submanifold.training import trainer

STEPS = 12


@pytest.fixture(scope="module")
def finished(project):
    return project.run()


def test_finished_read_only_experiment_is_found(project, finished, read_only, caplog):
    runs = len(project.mlflow_runs())
    read_only(project.path / "data")
    with caplog.at_level(logging.INFO), pytest.raises(Exit) as caught:
        project.run()
    assert caught.value.exit_code == 0
    assert "All outputs exist and are read-only" in caplog.text
    assert f"The report is {finished.path('report')}" in caplog.text
    assert len(project.mlflow_runs()) == runs


def test_new_outputs_in_a_read_only_folder_are_an_error(project, finished, read_only):
    read_only(project.path / "data")
    with pytest.raises(ClickException, match=r"cannot be written: .*06_models is read-only"):
        project.run(seed=3)


def test_read_only_data_can_be_trained_on(project, finished, read_only):
    read_only(project.path / "data" / "03_primary")
    again = project.run(seed=4, until="hierarchy")
    assert again.steps == {"stage_1": STEPS, "stage_2": STEPS}


def test_corrupted_test_images_are_prepared_again(project, finished):
    path, before = finished.path("x_test"), finished.load("metrics")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 128
    path.write_bytes(content)
    finished.path("metrics").unlink()
    again = project.run(only_missing_outputs=True)
    assert path.read_bytes() != bytes(content)
    assert again.load("metrics")["bits_per_dim"] == before["bits_per_dim"]


# ---- MLflow out of reach


def test_locked_database_ends_a_run_before_it_starts(project, finished, monkeypatch):
    before = list((project.path / "data").rglob("*"))
    monkeypatch.setattr(store, "SQLITE_TIMEOUT", 0.1)
    with sqlite3.connect(project.path / "mlflow.db", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(ClickException, match=r"^mlflow\.uri=.*\(database is locked\)"):
            project.run(seed=8)
    assert list((project.path / "data").rglob("*")) == before


def test_missing_server_ends_a_run_before_it_starts(new_project, monkeypatch):
    project = new_project()
    uri = "http://127.0.0.1:9"
    (project.path / "conf" / "test" / "mlflow.yml").write_text(
        f"server: {{mlflow_tracking_uri: {uri}}}"
    )
    monkeypatch.setattr("submanifold.runs.hooks.faults.START_RETRIES", 0)
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(ClickException, match=rf"^mlflow\.uri={uri} cannot be used \(.*refused"):
            project.run(until="x_train")
    finally:
        mlflow.set_tracking_uri(before)
    assert not (project.path / "data").exists()


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
    monkeypatch.setattr(tracking, "RETRY_INTERVAL", 0.1)
    tracking._warn.cache_clear()
    return Outage(monkeypatch)


def test_curves_are_complete_after_an_outage(project, finished, outage, caplog, monkeypatch):
    def fail(step, settings, lr_factor=trainer.lr_factor):
        outage.down = step > 3
        return lr_factor(step, settings)

    def evaluate(*args, measure=nodes.measure, **kwargs):
        outage.down = False
        return measure(*args, **kwargs)

    monkeypatch.setattr(trainer, "lr_factor", fail)
    monkeypatch.setattr(nodes, "measure", evaluate)
    run = project.run(seed=5)
    assert run.mlflow.info.status == "FINISHED"
    for phase in ("stage_1", "stage_2"):
        client, history = project.mlflow_client, run.load(f"{phase}.history")
        for kind in ("train", "valid"):
            logged = client.get_metric_history(run.mlflow.info.run_id, f"{phase}.{kind}.loss")
            assert [(each.step, each.value) for each in logged] == [
                (row["step"], row["loss"]) for row in history[kind]
            ]
    assert caplog.text.count("The run continues") <= 1
    assert "have not reached" not in caplog.text


def test_run_without_mlflow_writes_all_its_files(project, finished, outage, caplog, monkeypatch):
    def fail(step, settings, lr_factor=trainer.lr_factor):
        outage.down = True
        return lr_factor(step, settings)

    monkeypatch.setattr(trainer, "lr_factor", fail)
    with project.session(seed=6) as session:
        session.run(pipeline_names=["hierarchical"])
    outage.down = False
    assert mlflow.active_run() is None
    assert project.catalog(seed=6).exists("report")
    assert caplog.text.count("cannot be used now (database is locked). The run continues") == 1
    assert "values of the training curves have not reached MLflow" in caplog.text


def test_mistake_during_an_outage_is_reported(project, finished, outage, monkeypatch):
    def fail(*args, **kwargs):
        outage.down = True
        raise UserError("a mistake")

    monkeypatch.setattr(nodes, "measure", fail)
    with pytest.raises(ClickException, match="a mistake"):
        project.run(seed=7)
    assert mlflow.active_run() is None
