"""Processes for work that takes all cores."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from submanifold.errors import UserError


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool(doing: str, count: int) -> Iterator[ProcessPoolExecutor]:
    """Give so many processes; they end with this one, however it ends.

    Args:
        doing: What they do, as in "processes that <doing>".
        count: How many.

    Raises:
        UserError: One of them has died.
    """
    # Forked processes share what is loaded: a spawned one would import the whole program anew.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    executor = ProcessPoolExecutor(count, context, _begin)
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


def _begin() -> None:
    """Set up a process: it ends with its parent, which alone hears the keyboard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "it is a child"
    parent.join()
    os._exit(1)
