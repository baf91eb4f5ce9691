"""MLflow's database is there whole or not at all, however its making ends."""

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
from submanifold.runs.store import check_room, create_store, root_of, without_password

MAKE = """
import sys
from submanifold.runs.store import create_store
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


@pytest.mark.parametrize("uri", ["foo://", "foo://me:secret@host/db"])
def test_a_uri_of_an_unknown_scheme_is_refused_in_one_line(uri):
    with pytest.raises(
        UserError, match=r"^uri=foo://\S* cannot be used: .*https.*sqlite"
    ) as caught:
        create_store(uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


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


@pytest.mark.slow
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


# ---- databases that cannot be used


def test_a_database_with_room_is_left_as_it_is(database):
    before = database.read_bytes()
    check_room(f"sqlite:///{database}")
    assert database.read_bytes() == before
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"]
    check_room("http://127.0.0.1:9")


@pytest.mark.parametrize("how", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_locked_database_is_told(database, tmp_path, monkeypatch, how):
    path = tmp_path / "mlflow.db"
    shutil.copy(database, path)
    monkeypatch.setattr(store, "WAIT", 0.1)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"BEGIN {how}")
    use = create_store if how == "EXCLUSIVE" else check_room
    with pytest.raises(UserError, match=r"^uri=.*used \(database is locked\).*mlflow\.yml"):
        use(f"sqlite:///{path}")
    connection.close()
    create_store(f"sqlite:///{path}")
    check_room(f"sqlite:///{path}")


def test_a_database_on_a_full_disk_is_told(database, small_disk):
    path = small_disk / "mlflow.db"
    shutil.copy(database, path)
    (small_disk / "full").write_bytes(bytes(2**21 - 2**16 - path.stat().st_size))
    create_store(f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"cannot be used \(database or disk is full\)"):
        check_room(f"sqlite:///{path}")
    (small_disk / "full").unlink()
    create_store(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert not list(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'room'"))
        assert list(connection.execute("PRAGMA integrity_check")) == [("ok",)]


def test_a_database_cannot_be_made_on_a_full_disk(small_disk):
    (small_disk / "full").write_bytes(bytes(2**21 - 2**16))
    with pytest.raises(UserError, match=r"cannot be used \(database or disk is full\)"):
        create_store(f"sqlite:///{small_disk / 'mlflow.db'}")
    assert [file.name for file in small_disk.iterdir()] == ["full"]


def test_a_database_that_may_only_be_read_is_told_when_it_is_written(database, tmp_path, read_only):
    path = tmp_path / "mlflow.db"
    shutil.copy(database, path)
    read_only(tmp_path)
    create_store(f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"cannot be used \(attempt to write a readonly database\)"):
        check_room(f"sqlite:///{path}")
    with pytest.raises(UserError, match=r"other\.db cannot be written: .* may only be read"):
        create_store(f"sqlite:///{tmp_path / 'other.db'}")


def test_a_folder_in_its_place_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot be used \(unable to open database file\)"):
        create_store(f"sqlite:///{tmp_path}")


def test_what_a_killed_process_has_half_written_is_taken_back(database, tmp_path):
    path = tmp_path / "mlflow.db"
    shutil.copy(database, path)
    code = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN")
connection.execute("CREATE TABLE half (bytes)")
connection.execute("INSERT INTO half VALUES (zeroblob(1000000))")
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert (tmp_path / "mlflow.db-journal").stat().st_size > 0
    create_store(f"sqlite:///{path}")
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    assert log_a_run(path)


def test_the_root_of_an_error_is_one_line():
    error = RuntimeError("(Background on this error)")
    error.__cause__ = ValueError("locked\nlong text")
    assert root_of(error) == "locked"


def test_a_database_server_that_is_not_there_is_told_at_once_without_the_password():
    with pytest.raises(
        UserError, match=r"^uri=postgresql\S+flow:\*\*\*@\S+ cannot be used"
    ) as caught:
        create_store("postgresql+psycopg://flow:secret@127.0.0.1:9/mlflow")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("uri", "shown"), [
    ("http://me:secret@host:5000", "http://me:***@host:5000"),
    ("http://host:5000/a@b", "http://host:5000/a@b"),
    ("postgresql://me@host/name", "postgresql://me@host/name"),
    ("sqlite:////a:b@c/mlflow.db", "sqlite:////a:b@c/mlflow.db"),
])  # fmt: skip
def test_only_a_password_is_left_out_of_what_messages_show(uri, shown):
    assert without_password(uri) == shown
