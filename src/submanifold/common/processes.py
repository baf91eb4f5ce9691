"""Cores, memory and worker processes."""

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


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Return the bytes that this process may still allocate, within its control group's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):  # Linux only
        free = 1024 * _read_numbers(Path("/proc/meminfo"))["MemAvailable:"]
    with suppress(OSError, ValueError):  # no control group, or its limit is "max"
        limit = int((CONTROL_GROUP / "memory.max").read_text())
        used = int((CONTROL_GROUP / "memory.current").read_text())
        stat = _read_numbers(CONTROL_GROUP / "memory.stat")
        reclaimable = stat["file"] - stat["shmem"]
        free = min(free, max(0, limit - used + reclaimable))
    return free


def _read_numbers(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}


def check_memory(name: str, count: int, each: int) -> None:
    """Check that ``count`` objects of ``each`` bytes fit in the free memory.

    Args:
        name: The setting or argument that sets the count.
        count: Number of objects.
        each: Bytes per object.

    Raises:
        UserError: They do not fit.
    """
    free = free_memory()
    if count * each > free:
        raise UserError(
            f"{name}: expected at most {free // each:,}, got {count:,}: each takes {each:,} bytes, "
            f"and {free / 1e9:.1f} GB of memory are free. Request fewer at a time."
        )


@contextmanager
def process_pool(task: str, count: int) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes that end with this process, however it ends.

    Args:
        task: What they do, for the message: "processes that <task>".
        count: Number of processes.

    Raises:
        UserError: A worker was killed.
    """
    # Forked processes inherit the loaded modules; spawned ones would import torch again.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    executor = ProcessPoolExecutor(count, context, _initialize_worker, (os.getpid(),))
    try:
        executor.submit(os.getpid).result()  # fork all before this process starts threads
        yield executor
    except BrokenProcessPool as error:
        raise UserError(
            f"One of the {count} processes that {task} was killed, by a user or because the system "
            "ran out of memory. Repeat the command: it continues from the finished files."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _initialize_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    terminate_with_parent(parent)


def terminate_with_parent(parent: int) -> None:
    """Send this process SIGTERM when its parent has ended, even by SIGKILL.

    Args:
        parent: Process id of the parent, passed by the parent, which may have ended already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
