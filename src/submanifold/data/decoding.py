"""Images decoded by all cores, in the order of their names."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np

from submanifold.common.processes import cores, process_pool
from submanifold.data.source import Source

# Of fewer images, starting processes takes longer than decoding.
WORTH_PROCESSES = 256
# What a process is given at once, and how often that, so that none has to wait.
GROUP_IMAGES, GROUP_BYTES = 64, 2**22
AHEAD = 3

Result = np.ndarray | str
"""An image, or why there is none."""


@contextmanager
def decoding(source: Source, count: int) -> Iterator[Callable[[Iterable[str]], Iterator[Result]]]:
    """Give a function that reads and decodes names, whose results come in order as they are taken.

    Files are read here and decoded by as many processes as there are cores, if `count` images are
    worth it. What is read ahead is bounded, so that memory does not grow with the number of images;
    and the results do not depend on that of processes, which end with this one, however it ends.

    Raises:
        UserError: A process has died.
    """
    if count < WORTH_PROCESSES:
        yield lambda names: (attempt(source.image, name) for name in names)
        return
    processes = cores()
    with process_pool("decode images", processes) as executor:

        def decoded(names: Iterable[str]) -> Iterator[Result]:
            ahead: deque[Future[list[Result]]] = deque()
            for group in _groups(source, names):
                ahead.append(executor.submit(_decode, source.decode, group))
                if len(ahead) > AHEAD * processes:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

        yield decoded


def _groups(source: Source, names: Iterable[str]) -> Iterator[list[Any]]:
    """What is stored under names, or an exception, in lists of a bounded size."""
    group: list[Any] = []
    size = 0
    for name in names:
        try:
            group.append(source.read(name))
            size += len(group[-1])
        except Exception as error:  # zips and disks have many kinds
            group.append(error)
        if len(group) == GROUP_IMAGES or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    yield group


def _decode(decode: Callable[[Any], np.ndarray], group: list[Any]) -> list[Result]:
    return [_told(each) if isinstance(each, Exception) else attempt(decode, each)
            for each in group]  # fmt: skip


def attempt(make: Callable[[Any], np.ndarray], of: Any) -> Result:
    """An image that a function makes, or the error that it raises."""
    try:
        return make(of)
    except Exception as error:  # PIL's plugins raise nearly every kind on a broken file
        return _told(error)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
