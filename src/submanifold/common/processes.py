"""Processes that work for this one, and end with it."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path

from submanifold.common.errors import UserError

CONTROL_GROUP = Path("/sys/fs/cgroup")
LOOK = 0.5  # seconds between looks for a parent that is gone


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that this process may still allocate, by the system and by its control group."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):  # on Linux alone
        free = 1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"]
    with suppress(OSError, ValueError):  # also where there is no limit: its text is "max"
        most = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        stat = _numbers(CONTROL_GROUP / "memory.stat")
        cached = stat["file"] - stat["shmem"]  # the system takes it back when it is needed
        free = min(free, max(0, most - used + cached))
    return free


def _numbers(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}


def check_memory(name: str, count: int, each: int) -> None:
    """Refuse to make more than fits in the free memory.

    Args:
        name: The setting or argument that sets the number.
        count: How many.
        each: Bytes that one of them takes.

    Raises:
        UserError: If they do not fit.
    """
    free = free_memory()
    if count * each > free:
        raise UserError(
            f"{name}: expected at most {free // each:,}, got {count:,}: each takes {each:,} bytes, "
            f"and {free / 1e9:.1f} GB of memory are free. Ask for fewer at a time."
        )


@contextmanager
def process_pool(doing: str, count: int) -> Iterator[ProcessPoolExecutor]:
    """Give so many processes; they end with this one, however it ends.

    Args:
        doing: What they do, as in "processes that <doing>".
        count: How many.

    Raises:
        UserError: One of them has died.
    """
    # Forked processes share what is loaded: a spawned one would import the whole program anew.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    executor = ProcessPoolExecutor(count, context, _begin, (os.getpid(),))
    try:
        executor.submit(os.getpid).result()  # all are there before other threads are
        yield executor
    except BrokenProcessPool as error:
        raise UserError(
            f"One of the {count} processes that {doing} was killed, by a user or by the system for "
            "want of memory. What is written is kept: give the command again to go on."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """Set up a process, which leaves the keyboard to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    terminate_with_parent(parent)


def terminate_with_parent(parent: int) -> None:
    """Let this process have a SIGTERM when its parent has ended, however that ended.

    Args:
        parent: Number of the process that has started this one, as it knows it itself: if it is
            gone already, nobody else does.
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
