"""Files that are whole or not there, and folders in which one process works at a time."""

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from submanifold.common import files
from submanifold.common.errors import UserError
from submanifold.common.files import (
    WriteError,
    atomic_write,
    explain_write_errors,
    is_locked,
    locked,
    printable,
    read_json,
    sync_and_rename,
    table_name,
    write_json,
)
from submanifold.models.model import save_tensors
from submanifold.runs.datasets import ArrayDataset, JSONDataset, PathDataset


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def start(code, *arguments):
    """Run code in another process; it prints a line when it has come far enough."""
    command = [sys.executable, "-c", "import sys, time\n" + code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


# ---- files


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_write(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert (partial.parent, partial.suffix) == (path.parent, path.suffix)
    assert path.read_text() == "half"
    assert names_in(path.parent) == ["a.txt"]


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "ü" * 125 + ".csv", "a." + "猫" * 84])
def test_a_name_may_be_as_long_as_the_filesystem_allows(tmp_path, name):
    assert len(name.encode()) > 250
    with atomic_write(tmp_path / name) as partial:
        partial.write_text("all")
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize(("name", "shown", "in_table"), [
    ("a b.png", "a b.png", "a b.png"), ("猫.png", "猫.png", "猫.png"), ("", "", ""),
    (os.fsdecode(b"caf\xe9"), r"caf\udce9", r"caf\udce9"), ("a\nb\x1b", r"a\nb\x1b", r"a\nb\x1b"),
    ("=1", "=1", r"\x3d1"), ("+1", "+1", r"\x2b1"), ("-1", "-1", r"\x2d1"), ("@a", "@a", r"\x40a"),
    ("\t=1", r"\t=1", r"\t=1"),
])  # fmt: skip
def test_names_are_escaped_where_they_are_shown(name, shown, in_table):
    assert (printable(name), table_name(name)) == (shown, in_table)
    assert (printable(shown), table_name(in_table)) == (shown, in_table)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_the_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    write_json(tmp_path / "a.json", 1)
    assert calls == ["fsync", "replace"]


def test_two_writers_do_not_share_a_path(tmp_path):
    with atomic_write(tmp_path / "a.txt") as mine:
        other = []

        def write():
            with atomic_write(tmp_path / "a.txt") as partial:
                partial.write_text("other")
                other.append(partial)

        mine.write_text("mine")
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert other != [mine]
        assert (tmp_path / "a.txt").read_text() == "other"
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_the_first_wins_where_it_is_to_be_kept(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path, keep=True) as partial:
        partial.write_text("second")
        path.write_text("first")
    assert path.read_text() == "first"
    with atomic_write(tmp_path / "b.txt", keep=True) as partial:
        partial.write_text("alone")
    assert (tmp_path / "b.txt").read_text() == "alone"
    assert names_in(tmp_path) == ["a.txt", "b.txt"]


def test_without_hard_links_a_file_is_kept_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    for text in ("first", "second"):
        (tmp_path / "partial").write_text(text)
        sync_and_rename(tmp_path / "partial", tmp_path / "a.txt", keep=True)
    assert (tmp_path / "a.txt").read_text() == "first"


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    code = """
from submanifold.common.files import atomic_write
with atomic_write(sys.argv[1]) as partial:
    partial.write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""
    path = tmp_path / "a.txt"
    process = start(code, path)
    with atomic_write(path) as partial:
        partial.write_text("mine")
    assert len(names_in(tmp_path)) == 2  # the other one is at work
    kill(process)
    assert path.read_text() == "mine"
    write_json(tmp_path / "other.txt", 1)
    assert len(names_in(tmp_path)) == 3
    write_json(path, 2)
    assert names_in(tmp_path) == ["a.txt", "other.txt"]


def test_json_that_is_not_whole_is_nothing(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"b": [1, None]})
    assert read_json(path) == {"b": [1, None]}
    path.write_text(path.read_text()[:-3])
    assert read_json(path) is None
    with pytest.raises(TypeError):
        write_json(path, {1, 2})
    assert names_in(tmp_path) == ["a.json"]


# ---- locks

HOLD = """
from submanifold.common.files import locked
with locked(sys.argv[1], "u"):
    print("there", flush=True)
    sys.stdin.read() if sys.argv[2] == "wait" else time.sleep(float(sys.argv[2]))
"""


def test_a_second_process_waits_and_says_for_whom(tmp_path, caplog):
    process = start(HOLD, tmp_path / "new", 0.5)
    with caplog.at_level(logging.INFO), locked(tmp_path / "new", "stage 1"):
        assert process.wait(timeout=5) == 0
    assert f"waiting for another run (pid {process.pid} on " in caplog.text
    assert ") that is making stage 1" in caplog.text
    process.stdout.close()
    assert names_in(tmp_path / "new") == []
    caplog.clear()
    with caplog.at_level(logging.INFO), locked(tmp_path / "new", "stage 1"):
        assert caplog.text == ""


def test_a_killed_process_holds_no_lock(tmp_path):
    process = start(HOLD, tmp_path, 60)
    assert is_locked(tmp_path)
    kill(process)
    assert not is_locked(tmp_path)
    begun = time.monotonic()
    with locked(tmp_path, "it"):
        assert time.monotonic() - begun < 5


def test_a_folder_that_nobody_has_locked_is_not(tmp_path):
    assert not is_locked(tmp_path / "new")
    with locked(tmp_path, "it"):
        assert is_locked(tmp_path), "by this process too"
    assert not is_locked(tmp_path)
    assert names_in(tmp_path) == []


def test_many_at_once_come_one_after_the_other(tmp_path):
    """The lock's file is removed and made again all the time, and still only one has it."""
    inside, most, count = [], [], []

    def work():
        for _ in range(50):
            with locked(tmp_path, "it"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.pop()
                count.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert (max(most), len(count)) == (1, 200)


def test_a_lock_inside_a_lock_of_the_same_folder_does_not_wait(tmp_path, caplog):
    with caplog.at_level(logging.INFO), locked(tmp_path, "all"), locked(tmp_path, "a part"):
        pass
    assert caplog.text == ""
    assert names_in(tmp_path) == []


def test_without_locks_the_work_goes_on_with_a_warning(tmp_path, caplog, monkeypatch):
    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with locked(tmp_path, "it"):
        done = True
    assert done
    assert "cannot be locked (no locks available)" in caplog.text


def test_a_failure_inside_lets_go(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path, "it"):
        raise RuntimeError
    process = start(HOLD, tmp_path, 0)
    assert process.wait(timeout=5) == 0
    process.stdout.close()


# ---- disks that are full or may only be read


def test_where_nothing_may_be_written_nothing_is_locked(tmp_path, read_only, caplog):
    read_only(tmp_path)
    with locked(tmp_path, "it"):
        pass
    assert caplog.text == ""


def fill(disk):
    """Leave it nothing."""
    with open(disk / "rest", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


WRITERS = {
    "json": lambda path: write_json(path, "x" * 10_000),
    "safetensors": lambda path: save_tensors({"a": torch.zeros(10_000)}, path, {}),
    "Kedro's json": lambda path: JSONDataset(filepath=str(path)).save("x" * 10_000),
    "Kedro's array": lambda path: ArrayDataset(filepath=str(path)).save(torch.ones(9999).numpy()),
    "a folder": lambda path: PathDataset(filepath=str(path / "deep" / "file")).load(),
}


def told(error):
    """What the command line shows of an error: the first mistake of the user's in its causes."""
    while not isinstance(error, UserError):
        error = error.__cause__
    return str(error)


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "a folder"])
def test_a_full_disk_is_told_in_one_message_and_leaves_nothing(small_disk, writer):
    fill(small_disk)
    with pytest.raises(Exception, match=r".") as caught:
        WRITERS[writer](small_disk / "it")
    assert "it cannot be written" in told(caught.value)
    assert f"{small_disk} has no room for it (No space left on device; 0 MB" in told(caught.value)
    assert names_in(small_disk) == ["rest"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_may_only_be_read_is_told_in_one_message(tmp_path, read_only, writer):
    folder = tmp_path / "there"
    folder.mkdir()
    read_only(folder)
    with pytest.raises(Exception, match=r".") as caught:
        WRITERS[writer](folder / "new" / "it")
    assert f"{folder} may only be read (Read-only file system)" in told(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_is_full_in_any_way_is_told(tmp_path, number):
    said = r"a\.npy cannot be written: .* has no room for it"
    with pytest.raises(WriteError, match=said), explain_write_errors(tmp_path / "a.npy"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "a picture"), ValueError("x")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, explain_write_errors(tmp_path / "a.npy"):
        raise error
    assert caught.value is error
