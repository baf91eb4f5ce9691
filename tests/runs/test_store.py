"""MLflow's store is created completely or not at all, and failures are reported quickly."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import mlflow
import pytest

from submanifold.common.errors import UserError
from submanifold.runs import store
from submanifold.runs.store import check_writable, prepare_store, without_password

MAKE = """
import sys
from submanifold.runs.store import prepare_store
print("ready", flush=True)
prepare_store("sqlite:///" + sys.argv[1])
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty database."""
    path = tmp_path_factory.mktemp("whole") / "mlflow.db"
    prepare_store(f"sqlite:///{path}")
    return path


def start(path):
    command = [sys.executable, "-c", MAKE, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
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


def test_created_database_is_complete(database):
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"]
    assert log_a_run(database)


def test_existing_database_is_not_changed(database):
    before = database.read_bytes()
    prepare_store(f"sqlite:///{database}")
    check_writable(f"sqlite:///{database}")
    assert database.read_bytes() == before
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    "uri", ["file:///x", "http://x:5000", "foo://x", "sqlite://", "sqlite:///:memory:"]
)
def test_other_uris_are_left_to_mlflow(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_store(uri)
    check_writable(uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_create_one_database(tmp_path):
    path = tmp_path / "mlflow.db"
    processes = [start(path) for _ in range(2)]
    assert [finish(process) for process in processes] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    log_a_run(path)


def test_creation_that_is_killed_is_repeated(tmp_path):
    path = tmp_path / "mlflow.db"
    process = start(path)
    deadline = time.monotonic() + 60
    while not any(each.stat().st_size for each in tmp_path.glob(".mlflow.*.db")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    assert not path.exists()
    prepare_store(f"sqlite:///{path}")
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    log_a_run(path)


def test_path_that_is_not_a_database_is_reported(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(UserError, match=r"^mlflow\.uri=sqlite:.* \(file is not a database\)"):
        prepare_store(f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"cannot be used \(unable to open database file\)"):
        prepare_store(f"sqlite:///{tmp_path}")
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_locked_database_is_reported(database, tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    shutil.copy(database, path)
    monkeypatch.setattr(store, "SQLITE_TIMEOUT", 0.1)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"^mlflow\.uri=.*used \(database is locked\).*mlflow\.yml"):
        check_writable(f"sqlite:///{path}")
    connection.close()
    check_writable(f"sqlite:///{path}")


def test_database_on_a_full_disk_is_reported(database, small_disk):
    path = small_disk / "mlflow.db"
    shutil.copy(database, path)
    (small_disk / "full").write_bytes(bytes(2**21 - 2**16 - path.stat().st_size))
    prepare_store(f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"cannot be used \(database or disk is full\)"):
        check_writable(f"sqlite:///{path}")
    (small_disk / "full").unlink()
    prepare_store(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert not list(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'test'"))
        assert list(connection.execute("PRAGMA integrity_check")) == [("ok",)]


def test_creation_on_a_full_disk_is_reported(small_disk):
    (small_disk / "full").write_bytes(bytes(2**21 - 2**16))
    with pytest.raises(UserError, match=r"cannot be used \(database or disk is full\)"):
        prepare_store(f"sqlite:///{small_disk / 'mlflow.db'}")
    assert [file.name for file in small_disk.iterdir()] == ["full"]


def test_read_only_database_is_reported_when_it_is_written(database, tmp_path, read_only):
    path = tmp_path / "mlflow.db"
    shutil.copy(database, path)
    read_only(tmp_path)
    prepare_store(f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"cannot be used \(attempt to write a readonly database\)"):
        check_writable(f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"other\.db cannot be written: .* is read-only"):
        prepare_store(f"sqlite:///{tmp_path / 'other.db'}")


def test_missing_database_server_is_reported_without_the_password():
    with pytest.raises(
        UserError, match=r"^mlflow\.uri=postgresql\S+flow:\*\*\*@\S+ cannot be used"
    ) as caught:
        prepare_store("postgresql+psycopg://flow:secret@127.0.0.1:9/mlflow")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("uri", "shown"), [
    ("http://me:secret@host:5000", "http://me:***@host:5000"),
    ("http://host:5000/a@b", "http://host:5000/a@b"),
    ("postgresql://me@host/name", "postgresql://me@host/name"),
    ("sqlite:////a:b@c/mlflow.db", "sqlite:////a:b@c/mlflow.db"),
])  # fmt: skip
def test_only_passwords_are_replaced(uri, shown):
    assert without_password(uri) == shown
