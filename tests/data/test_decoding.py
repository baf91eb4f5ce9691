"""Pictures are decoded by processes, whose number changes nothing, and which leave none behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from submanifold.common.errors import UserError
from submanifold.data import decoding
from submanifold.data.sources import Source


def grey(content):
    if content == b"13":
        raise ValueError("not an image")
    return np.full((1, 2, 2), int(content), np.uint8)


def kill_at(number, content):
    if content == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return grey(content)


def source(decode=grey, count=250):
    def read(name):
        if name == "100":
            raise OSError("bad block")
        return name.encode()

    return Source([str(n) for n in range(count)], read, decode, None, "random", "square")


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(decoding, "TASK_IMAGES", 7)


def results(source, count=1000):
    with decoding.decoder(source, count) as decoded:
        return list(decoded(source.names))


def told(results):
    return [each if isinstance(each, str) else int(each.mean()) for each in results]


@pytest.mark.parametrize("processes", [1, 3])
def test_results_are_in_order_whatever_the_number_of_processes(
    monkeypatch, small_groups, processes
):
    monkeypatch.setattr(decoding, "cores", lambda: processes)
    expected = list(range(250))
    expected[13], expected[100] = "ValueError: not an image", "OSError: bad block"
    assert told(results(source())) == expected
    assert told(results(source(), count=2)) == expected  # in this process


def test_few_names_are_read_ahead(monkeypatch, small_groups):
    monkeypatch.setattr(decoding, "cores", lambda: 2)
    taken = []
    some = source()
    with decoding.decoder(some, 1000) as decoded:
        for _ in decoded(taken.append(name) or name for name in some.names):
            break
    assert len(taken) <= 7 * (2 * decoding.QUEUED + 2)


def test_large_files_are_read_one_at_a_time(monkeypatch):
    monkeypatch.setattr(decoding, "TASK_BYTES", 2)
    groups = list(decoding._tasks(source(), ["1", "22", "3", "4", "100"]))
    assert groups[:3] == [[b"1", b"22"], [b"3", b"4"], groups[2]]
    assert [type(each) for each in groups[2]] == [OSError]


def test_a_killed_process_is_one_clear_message(monkeypatch, small_groups):
    monkeypatch.setattr(decoding, "cores", lambda: 2)
    with pytest.raises(UserError, match=r"One of the 2 processes .* was killed.*give the command"):
        results(source(partial(kill_at, b"99")))


def test_processes_end_with_a_killed_parent():
    script = (
        "from test_decoding import source, decoding, os\n"
        "with decoding.decoder(source(), 1000) as decoded:\n"
        "    next(decoded(source().names))\n"
        "    import multiprocessing, time\n"
        "    print(*(each.pid for each in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=os.path.dirname(__file__)
    )
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, children))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
