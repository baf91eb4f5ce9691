"""Disks that may only be read or turn bits, and MLflow out of reach, around whole runs."""

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


def test_a_finished_experiment_that_may_only_be_read_is_found(project, finished, read_only, caplog):
    runs = len(project.mlflow_runs())
    read_only(project.path / "data")
    with caplog.at_level(logging.INFO), pytest.raises(Exit) as caught:
        project.run()
    assert caught.value.exit_code == 0
    assert "All of it is there, and may only be read: nothing is made anew" in caplog.text
    assert f"The report is {finished.path('report')}" in caplog.text
    assert len(project.mlflow_runs()) == runs


def test_what_is_missing_cannot_be_made_where_data_may_only_be_read(project, finished, read_only):
    read_only(project.path / "data")
    with pytest.raises(ClickException, match=r"cannot be written: .*06_models may only be read"):
        project.run(seed=3)


def test_another_experiment_on_data_that_may_only_be_read(project, finished, read_only):
    read_only(project.path / "data" / "03_primary")
    again = project.run(seed=4, until="hierarchy")
    assert again.steps == {"phase_1": STEPS, "phase_2": STEPS}


def test_a_turned_bit_in_the_test_images_does_not_change_the_metrics(project, finished):
    path, before = finished.path("x_test"), finished.load("metrics")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 128
    path.write_bytes(content)
    finished.path("metrics").unlink()
    again = project.run(only_missing_outputs=True)
    assert path.read_bytes() != bytes(content)
    assert again.load("metrics")["bits_per_dim"] == before["bits_per_dim"]


# ---- MLflow out of reach


def test_a_locked_database_stops_a_run_before_it_starts(project, finished, monkeypatch):
    before = list((project.path / "data").rglob("*"))
    monkeypatch.setattr(store, "WAIT", 0.1)
    with sqlite3.connect(project.path / "mlflow.db", isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(ClickException, match=r"^mlflow\.uri=.*\(database is locked\)"):
            project.run(seed=8)
    assert list((project.path / "data").rglob("*")) == before


def test_a_server_that_is_not_there_stops_a_run_before_it_starts(new_project, monkeypatch):
    project = new_project()
    uri = "http://127.0.0.1:9"
    (project.path / "conf" / "test" / "mlflow.yml").write_text(
        f"server: {{mlflow_tracking_uri: {uri}}}"
    )
    monkeypatch.setattr("submanifold.runs.hooks.START_RETRIES", 0)
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(ClickException, match=rf"^mlflow\.uri={uri} cannot be used \(.*refused"):
            project.run(until="x_train")
    finally:
        mlflow.set_tracking_uri(before)
    assert not (project.path / "data").exists()


class Outage:
    """MLflow's store, which can be made to fail at whatever is asked of it."""

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
    monkeypatch.setattr(tracking, "RETRY", 0.1)
    tracking._warn_of_loss.cache_clear()
    return Outage(monkeypatch)


def test_a_training_goes_on_without_mlflow_and_all_arrives_when_it_is_back(
    project, finished, outage, caplog, monkeypatch
):
    def fail(step, settings, schedule=trainer.schedule):
        outage.down = step > 3
        return schedule(step, settings)

    def evaluate(*args, measure=nodes.measure, **kwargs):
        outage.down = False
        return measure(*args, **kwargs)

    monkeypatch.setattr(trainer, "schedule", fail)
    monkeypatch.setattr(nodes, "measure", evaluate)
    run = project.run(seed=5)
    assert run.mlflow.info.status == "FINISHED"
    for phase in ("phase_1", "phase_2"):
        client, history = project.mlflow_client, run.load(f"{phase}.history")
        for kind in ("train", "valid"):
            logged = client.get_metric_history(run.mlflow.info.run_id, f"{phase}.{kind}.loss")
            assert [(each.step, each.value) for each in logged] == [
                (row["step"], row["loss"]) for row in history[kind]
            ]
    assert caplog.text.count("The run goes on") <= 1
    assert "have not reached" not in caplog.text


def test_a_run_that_never_reaches_mlflow_again_ends_with_all_its_files(
    project, finished, outage, caplog, monkeypatch
):
    def fail(step, settings, schedule=trainer.schedule):
        outage.down = True
        return schedule(step, settings)

    monkeypatch.setattr(trainer, "schedule", fail)
    with project.session(seed=6) as session:
        session.run(pipeline_names=["hierarchical"])
    outage.down = False
    assert mlflow.active_run() is None
    assert project.catalog(seed=6).exists("report")
    assert caplog.text.count("cannot be used now (database is locked). The run goes on") == 1
    assert "values of the training curves have not reached MLflow" in caplog.text


def test_a_mistake_during_an_outage_is_still_told(project, finished, outage, monkeypatch):
    def fail(*args, **kwargs):
        outage.down = True
        raise UserError("a mistake")

    monkeypatch.setattr(nodes, "measure", fail)
    with pytest.raises(ClickException, match="a mistake"):
        project.run(seed=7)
    assert mlflow.active_run() is None
