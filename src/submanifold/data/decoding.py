"""Decoding of images by all cores, with results in the order of the names."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from submanifold.common.processes import cores, process_pool
from submanifold.data.sources import Source

# For fewer images, starting processes takes longer than decoding.
PARALLEL_IMAGES = 256
# Largest task of a process, and tasks that are queued for each process.
TASK_IMAGES, TASK_BYTES = 64, 2**22
QUEUED = 3

Result = np.ndarray | str
"""An image, or the reason why it cannot be decoded."""


@contextmanager
def decoder(source: Source, count: int) -> Iterator[Callable[[Iterable[str]], Iterator[Result]]]:
    """Give a function that reads and decodes names, with results in order.

    Files are read in this process and decoded by one process per core if there are many. The
    number of files read ahead is bounded.

    Args:
        source: The source of the images.
        count: Number of images to expect.

    Raises:
        UserError: If a process is killed.
    """
    if count < PARALLEL_IMAGES:
        yield lambda names: (attempt(source.image, name) for name in names)
        return
    processes = cores()
    with process_pool("decode images", processes) as executor:

        def decode(names: Iterable[str]) -> Iterator[Result]:
            queue: deque[Future[list[Result]]] = deque()
            for task in _tasks(source, names):
                queue.append(executor.submit(_decode, source.decode, task))
                if len(queue) > QUEUED * processes:
                    yield from queue.popleft().result()
            while queue:
                yield from queue.popleft().result()

        yield decode


def _tasks(source: Source, names: Iterable[str]) -> Iterator[list[Any]]:
    """Stored data, or exceptions, in lists of a bounded size."""
    task: list[Any] = []
    size = 0
    for name in names:
        try:
            task.append(source.read(name))
            size += len(task[-1])
        except Exception as error:  # zips and disks raise many kinds of errors
            task.append(error)
        if len(task) == TASK_IMAGES or size >= TASK_BYTES:
            yield task
            task, size = [], 0
    yield task


def _decode(decode: Callable[[Any], np.ndarray], task: list[Any]) -> list[Result]:
    return [_reason(each) if isinstance(each, Exception) else attempt(decode, each)
            for each in task]  # fmt: skip


def attempt(function: Callable[[Any], np.ndarray], argument: Any) -> Result:
    """Image that a function returns, or the error that it raises."""
    try:
        return function(argument)
    except Exception as error:  # PIL's plugins raise many kinds of errors
        return _reason(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
