"""Cores, memory and threads of this process."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from submanifold.common.errors import unexpected

CONTROL_GROUP = Path("/sys/fs/cgroup")
CHUNK = 16  # items that a thread takes at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(control_group: Path = CONTROL_GROUP) -> int:
    """Return the bytes that this process may still allocate, within its control group's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):  # Linux only
        free = 1024 * _read_numbers(Path("/proc/meminfo"))["MemAvailable:"]
    with suppress(OSError, ValueError):  # no control group, or its limit is "max"
        limit = int((control_group / "memory.max").read_text())
        stat = _read_numbers(control_group / "memory.stat")
        free = min(free, max(0, limit - stat["anon"] - stat["shmem"]))  # page cache is reclaimable
    return free


def _read_numbers(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}


def check_memory(name: str, count: int, size: int) -> None:
    """Raise a UserError about the count unless objects of ``size`` bytes fit in free memory."""
    free = free_memory()
    if count * size > free:
        got = f"{count:,}: each takes {size:,} bytes, and {free / 1e9:.1f} GB of memory are free"
        raise unexpected(name, f"at most {free // size:,}", got, "Request fewer at a time")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply a function to items in threads as results are needed; yield them in order."""
    remaining, waiting = iter(items), deque[Future[list[Result]]]()
    with ThreadPoolExecutor(cores()) as executor:
        while part := list(islice(remaining, CHUNK)):
            waiting.append(executor.submit(lambda part: [*map(function, part)], part))
            if len(waiting) >= 2 * cores():
                yield from waiting.popleft().result()
        for results in waiting:
            yield from results.result()
