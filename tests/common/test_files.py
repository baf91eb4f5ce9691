"""Atomic writes, folder locks, and errors of full or read-only disks."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading

import filelock
import pytest
import torch
from safetensors import SafetensorError

from submanifold.common.errors import printable, table_name
from submanifold.common.files import atomic_write, locked, write_json
from submanifold.models.io import save_tensors


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def start(code, *arguments):
    """Run code in another process until it prints a line."""
    command = [sys.executable, "-c", "import sys, time\n" + code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


# ---- files


@pytest.mark.parametrize(
    "name", ["a.txt", "x" * 251 + ".csv", "ü" * 125 + ".csv", "a." + "猫" * 84], ids=len
)
def test_atomic_write_renames_on_success(tmp_path, name):
    path = tmp_path / "new" / name
    with atomic_write(path) as partial:
        partial.write_text("all")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "all"
    assert names_in(path.parent) == [name]


@pytest.mark.parametrize(
    ("name", "shown", "in_table"),
    [
        ("a b.png", "a b.png", "a b.png"),
        ("猫.png", "猫.png", "猫.png"),
        ("", "", ""),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9", r"caf\udce9"),
        ("a\nb\x1b", r"a\nb\x1b", r"a\nb\x1b"),
        ("=1", "=1", r"\x3d1"),
        ("+1", "+1", r"\x2b1"),
        ("-1", "-1", r"\x2d1"),
        ("@a", "@a", r"\x40a"),
        ("\t=1", r"\t=1", r"\t=1"),
    ],
)
def test_file_names_are_escaped_once(name, shown, in_table):
    assert (printable(name), table_name(name)) == (shown, in_table)
    assert (printable(shown), table_name(in_table)) == (shown, in_table)


def test_threads_write_to_different_temporary_paths(tmp_path):
    def write():
        with atomic_write(tmp_path / "a.txt") as partial:
            partial.write_text("other")

    with atomic_write(tmp_path / "a.txt") as mine:
        mine.write_text("mine")
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert (tmp_path / "a.txt").read_text() == "other"
    assert (tmp_path / "a.txt").read_text() == "mine"


WRITE = """
from submanifold.common.files import atomic_write
with atomic_write(sys.argv[1]) as partial:
    partial.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.fault
def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path):
    path = tmp_path / "a.txt"
    kill(start(WRITE, path))
    assert not path.exists()
    write_json(path, 1)
    assert path.read_text() == "1"


@pytest.mark.fault
def test_writers_on_two_hosts_with_equal_process_numbers_write_different_files(tmp_path, container):
    path = tmp_path / "a.txt"
    for count in (1, 2):
        process = container(WRITE, path)
        assert process.stdout.readline() == "ready\n"
        assert len(names_in(tmp_path)) == count


# ---- locks

HOLD = """
from submanifold.common.files import locked
with locked(sys.argv[1], "u"):
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.fault
def test_second_process_waits(tmp_path, caplog):
    process = start(HOLD, tmp_path / "new", 1)
    with caplog.at_level(logging.INFO), locked(tmp_path / "new", "stage 1"):
        assert process.wait(timeout=60) == 0
    assert "waiting for another run to finish stage 1" in caplog.text
    process.stdout.close()
    caplog.clear()
    with caplog.at_level(logging.INFO), locked(tmp_path / "new", "stage 1"):
        assert caplog.text == ""


@pytest.mark.fault
def test_lock_of_a_killed_process_is_released(tmp_path):
    process = start(HOLD, tmp_path, 60)
    kill(process)
    with locked(tmp_path, "it"):  # does not wait
        pass


def test_threads_hold_the_lock_one_at_a_time(tmp_path):
    inside, most, count = [], [], []

    def work():
        for _ in range(20):
            with locked(tmp_path, "it"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                count.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in (threading.Thread.start, threading.Thread.join):
        [each(thread) for thread in threads]
    assert (max(most), len(count)) == (1, 80)


def test_lock_is_reentrant_and_released_after_an_error(tmp_path, caplog):
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(RuntimeError),
        locked(tmp_path, "all"),
        locked(tmp_path, "a part"),
    ):
        raise RuntimeError
    assert caplog.text == ""
    assert names_in(tmp_path) == []


def test_without_file_locks_the_work_continues_with_a_warning(tmp_path, caplog, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked(tmp_path, "it"):
        pass
    assert "cannot be locked (no locks available)" in caplog.text


# ---- full and read-only disks


@pytest.mark.fault
def test_read_only_folder_is_not_locked(tmp_path, read_only, caplog):
    read_only(tmp_path)
    with locked(tmp_path, "it"):
        pass
    assert caplog.text == ""


@pytest.mark.fault
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, "x" * 10_000),
        lambda path: save_tensors({"a": torch.zeros(10_000)}, path, {}),
    ],
)
def test_full_disk_is_reported_and_no_partial_file_remains(small_disk, write):
    with open(small_disk / "rest", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises((OSError, SafetensorError), match="No space left on device"):
        write(small_disk / "it")
    assert names_in(small_disk) == ["rest"]
