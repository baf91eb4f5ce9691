"""The number of threads of torch, chosen by the durations of units of equal work.

The threads of an operation wait for the slowest one at its end. On an idle machine more threads are
faster; where other processes use the cores, fewer are.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
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

_setting: Threads | None = None  # of use_threads
_most = 1  # threads of "auto": torch's number outside of use_threads


@contextmanager
def use_threads(setting: Threads | None) -> Iterator[None]:
    """Use a fixed number of threads in a command, or ``auto``, which measures and chooses it.

    ``auto`` uses at most as many threads as torch does: one for each core, or the number in the
    environment variable OMP_NUM_THREADS. None, as outside of this context, keeps torch's number.
    Contexts are those of the process: threads must not use it at the same time.
    """
    global _setting, _most
    before, present = _setting, torch.get_num_threads()
    if before is None:
        _most = present
    _setting = setting
    if setting is not None:
        torch.set_num_threads(_most if setting == "auto" else setting)
    try:
        yield
    finally:
        _setting = before
        torch.set_num_threads(present)


def choose_one_or_all(work: Callable[[], Any]) -> None:
    """Change to one thread if work takes less time with it; only with ``auto`` threads."""
    present, seconds = torch.get_num_threads(), dict[int, float]()
    if _setting == "auto" and present > 1:
        for count in (1, present):
            torch.set_num_threads(count)
            started = time.perf_counter()
            work()
            seconds[count] = time.perf_counter() - started
        torch.set_num_threads(min(seconds, key=lambda count: seconds[count]))


class ThreadTuner:
    """Chooses torch's number of threads while units of equal work are computed on the CPU.

    It starts with the present number. On another device, or without ``auto`` threads, it changes
    nothing. The processes of a group compute a unit together and choose the same number.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._count, self._choice = torch.get_num_threads(), None
        on_cpu = torch.device(device).type == "cpu"
        if on_cpu and _setting == "auto" and _most > 1:
            counts = {1, _most // 4, _most // 2, 3 * _most // 4, _most - 1, _most} - {0}
            self._choice = choose_threads(sorted(counts), self._count)
            self._count = next(self._choice)

    @contextmanager
    def unit(self, items: int = 1) -> Iterator[None]:
        """Compute a unit of ``items`` items of equal work inside of this context."""
        if self._choice and torch.get_num_threads() != self._count:
            torch.set_num_threads(self._count)
        started = time.perf_counter()
        yield
        seconds = torch.tensor(time.perf_counter() - started)
        if self._choice:
            distributed.average([seconds])
            self._count = self._choice.send((float(seconds), items))


def tuned(batches: Iterable[Batch], device: str | torch.device = "cpu") -> Iterator[Batch]:
    """Yield batches (x, ...); choose the number of threads by how fast the caller processes them.

    Processes that divide the batches among them keep their numbers of threads.
    """
    if distributed.world_size() > 1:
        yield from batches
        return
    tuner = ThreadTuner(device)
    for batch in batches:
        with tuner.unit(len(batch[0])):
            yield batch


def choose_threads(counts: Sequence[int], start: float) -> Generator[int, tuple[float, int], None]:
    """Yield the number of threads of each unit of work, and receive its seconds and items.

    It begins with the one of the increasing ``counts`` that is nearest to ``start``. The next
    smaller and the next larger number are tried from time to time, less often as long as neither is
    faster; at once if units become slower.
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
        for other in (n for n in (index - 1, index + 1) if 0 <= n < len(counts)):
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
