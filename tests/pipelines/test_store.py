"""MLflow's database is there whole or not at all, however its making ends."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import mlflow
import pytest

from submanifold.errors import UserError
from submanifold.pipelines import store
from submanifold.pipelines.store import create_store

MAKE = """
import sys
from submanifold.pipelines.store import create_store
print("there", flush=True)
create_store("sqlite:///" + sys.argv[1])
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A whole database without a run."""
    path = tmp_path_factory.mktemp("whole") / "mlflow.db"
    create_store(f"sqlite:///{path}")
    return path


def start(path):
    command = [sys.executable, "-c", MAKE, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    return process


def finish(process):
    code = process.wait(timeout=100)
    process.stdout.close()
    return code


def log_a_run(path):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    name = f"experiment {time.monotonic_ns()}"
    run = client.create_run(client.create_experiment(name, str(path.parent / "artifacts")))
    client.log_metric(run.info.run_id, "loss", 1.0)
    return run.info.run_id


def test_a_database_appears_whole_and_alone(database):
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"]
    assert log_a_run(database)


def test_an_existing_database_is_left_alone(database, tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    path.write_bytes(database.read_bytes())
    before = path.stat()
    monkeypatch.setattr(store, "_make", None)
    create_store(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:  # as an older MLflow leaves it
        connection.execute("UPDATE alembic_version SET version_num = 'older'")
        connection.execute("INSERT INTO runs (run_uuid) VALUES ('a')")
    create_store(f"sqlite:///{path}")
    assert path.stat().st_ino == before.st_ino


@pytest.mark.parametrize("uri", ["file:///x", "http://x:5000", "sqlite://", "sqlite:///:memory:"])
def test_other_uris_are_left_to_mlflow(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_make", None)
    monkeypatch.chdir(tmp_path)
    create_store(uri)
    assert list(tmp_path.iterdir()) == []


def test_two_first_runs_at_once_share_one_database(tmp_path):
    path = tmp_path / "mlflow.db"
    processes = [start(path) for _ in range(2)]
    assert [finish(process) for process in processes] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    log_a_run(path)


def test_killed_at_any_moment_the_next_run_makes_it(tmp_path):
    path = tmp_path / "mlflow.db"
    process = start(path)
    deadline = time.monotonic() + 60
    while not (halves := list(tmp_path.glob(".mlflow.*.db"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # into the migrations
    process.send_signal(signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    assert halves[0].stat().st_size > 0, "it was killed in the middle"
    assert not path.exists()
    create_store(f"sqlite:///{path}")
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    log_a_run(path)


@pytest.mark.parametrize("state", ["empty", "tables", "no version", "old version"])
def test_a_half_database_of_before_is_made_anew(database, tmp_path, caplog, monkeypatch, state):
    monkeypatch.setattr(store, "_make", lambda path: shutil.copy(database, path))
    path = tmp_path / "mlflow.db"
    path.touch()
    if state == "tables":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE experiments (name TEXT)")
    elif state != "empty":
        path.write_bytes(database.read_bytes())
        with sqlite3.connect(path) as connection:
            connection.execute("DELETE FROM runs")
            change = "DELETE FROM alembic_version"
            if state == "old version":
                change = "UPDATE alembic_version SET version_num = '451aebb31d03'"
            connection.execute(change)
    before = path.read_bytes()
    create_store(f"sqlite:///{path}")
    assert "made only by half" in caplog.text
    assert (tmp_path / "mlflow.db.half").read_bytes() == before
    log_a_run(path)


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(UserError, match=r"^uri=sqlite:.*cannot be opened as a database.*mlflow\.y"):
        create_store(f"sqlite:///{path}")
    assert os.listdir(tmp_path) == ["mlflow.db"]
