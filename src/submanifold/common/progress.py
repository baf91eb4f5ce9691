"""Progress of long computations: a bar on a terminal, log lines elsewhere."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

Batch = TypeVar("Batch", bound=Sized)

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)
_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)

LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {note}{left}"
BAR = "{desc} {bar} {n_fmt}/{total_fmt} {unit}, {note}{left}"


@contextmanager
def cancellation_check(check: Callable[[], None]) -> Iterator[None]:
    """Call ``check`` at every progress update of this thread; it raises to cancel the work."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


@contextmanager
def hidden_progress(hidden: bool = True) -> Iterator[None]:
    """Show no progress of the work inside."""
    token = _hidden.set(hidden)
    try:
        yield
    finally:
        _hidden.reset(token)


class ProgressBar(tqdm):
    """A tqdm bar that writes log lines where stderr is not a terminal.

    Args:
        description: What is computed.
        unit: What is counted.
        total: Number of units; 0 if unknown.
        done: Units done before, which do not count for the rate.
        every: Seconds between log lines.
    """

    monitor_interval = 0  # no thread

    def __init__(
        self, description: str, unit: str, total: int = 0, done: int = 0, every: float = 10.0
    ) -> None:
        self.note = ""
        self.on_terminal = sys.stderr.isatty()
        super().__init__(
            desc=description, unit=unit, total=total or None, initial=done, smoothing=0,
            mininterval=0.1 if self.on_terminal else every, miniters=1,
            delay=0 if self.on_terminal else every, bar_format=BAR if self.on_terminal else LINE,
            disable=_hidden.get(),
        )  # fmt: skip

    def __bool__(self) -> bool:  # tqdm's raises for an unknown total, and pooch calls it
        return True

    @property
    def format_dict(self) -> dict[str, Any]:
        """Fields of the format: the note, which defaults to the rate, and the time left."""
        fields = super().format_dict
        rate = (self.n - self.initial) / max(fields["elapsed"], 1e-9)
        left = f", {max(self.total - self.n, 0) / rate:.0f} s left" if self.total and rate else ""
        shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        return {**fields, "note": self.note or f"{shown} {self.unit}/s", "left": left}

    def update(self, n: int = 1, note: str = "") -> None:
        """Add ``n`` to the units done; a note replaces the displayed rate."""
        if check := _check.get():
            check()
        self.note = note or self.note
        super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or log a line."""
        if self.on_terminal:
            super().display(msg, pos)
        elif not self.disable:  # which close() sets
            log.info("%s", self)


def track(batches: Iterable[Batch], description: str, total: int) -> Iterator[Batch]:
    """Yield the batches and show the progress in images, or in rows of vectors (batch, D)."""
    with ProgressBar(description, "images", total) as progress:
        for batch in batches:
            if getattr(batch, "ndim", None) == 2:
                progress.unit = "rows"
            yield batch
            progress.update(len(batch))
