"""Progress of long computations: a bar on a terminal, log lines elsewhere."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

Batch = TypeVar("Batch", bound=Sized)

_hidden: ContextVar[bool] = ContextVar("hidden", default=False)

SECONDS = 10.0  # between log lines
STATE = "{n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}{postfix}"


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

    ``total`` is 0 if unknown; the units ``done`` before do not count for the rate.
    """

    monitor_interval = 0  # no thread

    def __init__(self, description: str, unit: str, total: int = 0, done: int = 0) -> None:
        self.on_terminal, self.logged = sys.stderr.isatty(), 0
        wait, layout = (0.1, "{desc} {bar} ") if self.on_terminal else (SECONDS, "{desc}: ")
        layout += STATE + (", {remaining} left" if total else "")
        super().__init__(
            desc=description,
            unit=f" {unit}",
            unit_scale=unit == "bytes",
            total=total or None,
            initial=done,
            leave=self.on_terminal,
            smoothing=0,
            mininterval=wait,
            miniters=1,
            delay=0 if self.on_terminal else wait,
            bar_format=layout,
            disable=_hidden.get() or os.environ.get("RANK", "0") != "0",  # of torchrun
        )

    def __bool__(self) -> bool:  # tqdm's raises for an unknown total, and pooch calls it
        return True

    def update(self, n: int = 1, note: str = "") -> None:
        """Add ``n`` to the units done; a note is shown after the rate."""
        if note:
            self.set_postfix_str(note, refresh=False)
        super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or log a line."""
        if self.on_terminal:
            super().display(msg, pos)
        elif not self.disable:  # which close() sets
            self.logged = self.n
            log.info("%s", self)

    def close(self) -> None:
        """End the bar, or log the last state if there were lines before."""
        if not self.on_terminal and not self.disable and 0 < self.logged < self.n:
            log.info("%s", self)
        super().close()


def track(batches: Iterable[Batch], description: str, total: int) -> Iterator[Batch]:
    """Yield batches, of events or tuples of these and others, and show the progress in events."""
    with ProgressBar(description, "events", total) as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch[0] if isinstance(batch, tuple) else batch))
