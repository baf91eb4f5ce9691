"""The number of threads of torch, chosen by the durations of units of equal work.

The threads of an operation wait for the slowest one at its end. On an idle machine more threads are
faster; where other processes use the cores, fewer are.
"""

import math
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeVar

import torch

from submanifold.common import distributed

LEAST_UNITS, LEAST_SECONDS, ENOUGH_SECONDS = 3, 0.1, 1.0  # of a measurement
FASTER = 0.93  # of the duration, so that another number of threads is used
SLOWER = 1.3  # times the shortest duration: the load has changed
TOO_SLOW = 2.0  # times the duration: a trial ends after one unit
FIRST_WAIT, LONGEST_WAIT = 2, 256  # measurements between trials

Batch = TypeVar("Batch", bound=tuple[Any, ...])
Threads = int | Literal["auto"]

_setting: Threads | None = None


@contextmanager
def use_threads(setting: Threads | None) -> Iterator[None]:
    """Use a fixed number of threads in a command, or ``auto``, which measures and chooses it.

    ``auto`` uses at most as many threads as torch does: one for each core, or the number in the
    environment variable OMP_NUM_THREADS. None, as outside of this context, keeps torch's number.
    The end of the context restores it.
    """
    global _setting
    before, present, most = _setting, torch.get_num_threads(), _most()
    _setting = setting
    if setting is not None:
        torch.set_num_threads(most if setting == "auto" else setting)
    try:
        yield
    finally:
        _setting = before
        torch.set_num_threads(present)


def threads_setting() -> Threads | None:
    """Return the setting of :func:`use_threads`; None outside of it."""
    return _setting


class ThreadTuner:
    """Chooses torch's number of threads while units of equal work are computed on the CPU.

    It starts with the present number. On another device, with a fixed number or outside of
    :func:`use_threads` it changes nothing. The processes of a group compute a unit together and
    choose the same number.

    Args:
        device: Device of the units.

    Attributes:
        used: Number of units by number of threads.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.used: Counter[str] = Counter()
        counts = _counts() if torch.device(device).type == "cpu" else [torch.get_num_threads()]
        present, several = torch.get_num_threads(), len(counts) > 1
        self._choice = choose_threads(counts, present) if several else None
        self._count = next(self._choice) if self._choice else counts[0]

    @contextmanager
    def unit(self, items: int = 1) -> Iterator[None]:
        """Compute a unit of ``items`` items of equal work inside of this context."""
        if self._choice and torch.get_num_threads() != self._count:
            torch.set_num_threads(self._count)
        started = time.perf_counter()
        yield
        seconds = torch.tensor(time.perf_counter() - started)
        self.used[str(self._count)] += 1
        if self._choice:
            distributed.average([seconds])
            self._count = self._choice.send((float(seconds), items))


def tuned(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches (x, ...); choose the number of threads by how fast the caller processes them.

    Processes that divide the batches among them keep their numbers of threads.
    """
    if distributed.world_size() > 1:
        yield from batches
        return
    tuner = ThreadTuner()
    for batch in batches:
        with tuner.unit(len(batch[0])):
            yield batch


def choose_threads(counts: Sequence[int], start: float) -> Generator[int, tuple[float, int], None]:
    """Yield the number of threads of each unit of work, and receive its seconds and items.

    The next smaller and the next larger number are tried from time to time, less often as long as
    neither is faster; the smaller one at once if units become slower.

    Args:
        counts: Numbers of threads to choose from, in increasing order.
        start: The first one, or the nearest of ``counts``.

    Example:
        >>> choice = choose_threads([1, 2], start=2)
        >>> threads = next(choice)
        >>> for _ in range(100):  # a second thread makes units slower
        ...     threads = choice.send(({1: 0.05, 2: 0.2}[threads], 1))
        >>> threads
        1
    """
    index, wait = min(range(len(counts)), key=lambda n: abs(counts[n] - start)), FIRST_WAIT
    while True:
        shortest = math.inf
        for _ in range(wait):
            duration = yield from _measure(counts[index])
            shortest = min(shortest, duration)
            if index > 0 and duration > SLOWER * shortest:
                break
        wait = min(2 * wait, LONGEST_WAIT)
        for other in (index - 1, index + 1):
            if not 0 <= other < len(counts):
                continue
            of_other = yield from _measure(counts[other], TOO_SLOW * duration)
            if of_other < FASTER * duration:
                index, wait = other, FIRST_WAIT
                break


def _measure(count: int, longest: float = math.inf) -> Generator[int, tuple[float, int], float]:
    """Use a number of threads for a few units, one if it is too slow; returns seconds by item."""
    seconds, items, units = 0.0, 0, 0
    while (units < LEAST_UNITS or seconds < LEAST_SECONDS) and seconds < ENOUGH_SECONDS:
        of_unit, in_unit = yield count
        seconds, items, units = seconds + of_unit, items + in_unit, units + 1
        if seconds > longest * items:
            break
    return seconds / items


def _counts() -> list[int]:
    if _setting != "auto":
        return [torch.get_num_threads()]
    most = _most()
    return sorted({1, most // 4, most // 2, 3 * most // 4, most - 1, most} - {0})


@cache
def _most() -> int:
    return torch.get_num_threads()
