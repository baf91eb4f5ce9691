"""Cores, memory, threads and child processes."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from submanifold.common.errors import UserError

CONTROL_GROUP = Path("/sys/fs/cgroup")

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 0, chunk: int = 16
) -> Iterator[Result]:
    """Apply a function to items in threads, and yield the results in order.

    Args:
        function: The function.
        items: The items, which are taken as they are needed.
        ahead: Number of items, at least, that are worked on before their results are used.
        chunk: Number of items that a thread takes at a time.
    """
    remaining, waiting = iter(items), deque[Future[list[Result]]]()
    executor = ThreadPoolExecutor(cores())
    try:
        while True:
            while len(waiting) < max(2 * cores(), -(-ahead // chunk)):
                if not (part := list(islice(remaining, chunk))):
                    break
                waiting.append(executor.submit(lambda part: [*map(function, part)], part))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


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
