"""How far a long piece of work has come: a bar on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

log = logging.getLogger(__name__)

Batch = TypeVar("Batch", bound=Sized)

_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


@contextmanager
def cancellation_check(check: Callable[[], None]) -> Iterator[None]:
    """Call a function at each step that a meter of this thread counts; it raises to end the work.

    So a long piece of work can be cancelled from outside between two of its batches.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


class ProgressBar:
    """Counts work done and shows rate and time left.

    It has the methods that pooch asks of a progress bar (`total`, `update`, `reset`, `close`).

    Args:
        description: What is being done.
        unit: What is counted.
        total: How many there are; 0 if not known.
        done: How many were there before; they do not count for the rate.
        every: Seconds between log lines where there is no terminal.
    """

    def __init__(
        self, description: str, unit: str, total: int = 0, done: int = 0, every: float = 10.0
    ) -> None:
        self.description, self.unit, self.every = description, unit, every
        self.total, self.done, self._before = total, done, done
        self._started = self._logged = time.monotonic()
        self._bar: Progress | None = None
        self.note = ""
        console = Console(stderr=True)
        if console.is_terminal:
            name, bar, _, time_left = Progress.get_default_columns()
            note = TextColumn("{task.fields[note]}")
            self._bar = Progress(name, bar, MofNCompleteColumn(), note, time_left, console=console)
            self._task = self._bar.add_task(description, completed=done, note="")

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: int, note: str = "") -> None:
        """Add to what is done; the note replaces the rate that is shown."""
        if check := _check.get():
            check()
        self.done += count
        self.note = note or self.note
        if self._bar:
            done, total, note = self.done, self.total or None, self._shown()
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._logged >= self.every:
            self._logged = time.monotonic()
            log.info("%s", self)

    def reset(self) -> None:
        """Start counting at zero."""
        self.done = self._before = 0

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar:
            self._bar.stop()

    def __str__(self) -> str:
        text = f"{self.description}: {self.done}/{self.total or '?'} {self.unit}, {self._shown()}"
        if self.total and (rate := self._rate()) > 0:
            text += f", {max(self.total - self.done, 0) / rate:.0f} s left"
        return text

    def _shown(self) -> str:
        return self.note or f"{self._rate():.0f} {self.unit}/s"

    def _rate(self) -> float:
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)


def track(batches: Iterable[Batch], description: str, total: int) -> Iterator[Batch]:
    """ForwardPass batches of images on, and show how many have gone by."""
    with ProgressBar(description, "images", total) as meter:
        for batch in batches:
            yield batch
            meter.update(len(batch))
