import io
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from submanifold.common.progress import ProgressBar, cancellation_check, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("total", "done", "note", "line"), [
    (100, 0, "", r"reading: 20/100 images, [1-9]\d* images/s, \d+ s left"),
    (100, 60, "", r"reading: 80/100 images, [1-9]\d* images/s, 0 s left"),
    (100, 0, "loss 2", r"reading: 20/100 images, loss 2, \d+ s left"),
    (0, 0, "", r"reading: 20/\? images, [1-9]\d* images/s"),
])  # fmt: skip
def test_line_contains_rate_or_note_and_time_left(total, done, note, line):
    progress = ProgressBar("reading", "images", total, done)
    progress.start_t -= 0.05
    progress.update(20, note)
    assert re.fullmatch(line, str(progress))


def test_rates_below_one_are_shown():
    progress = ProgressBar("reading", "images", 10)
    progress.start_t -= 8
    progress.update(2)
    assert str(progress) == "reading: 2/10 images, 0.25 images/s, 32 s left"


def test_log_lines_are_written_at_intervals_without_a_terminal(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with caplog.at_level(logging.INFO):
        with ProgressBar("reading", "rows", 4, every=5) as progress:
            for _ in range(4):
                now += 3
                progress.update(1)
        list(track([[1], [2]], "short", 2))
    lines = [record.message.split(",")[0] for record in caplog.records]
    assert lines == ["reading: 2/4 rows", "reading: 4/4 rows"]


def test_bar_is_drawn_on_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with caplog.at_level(logging.INFO), ProgressBar("reading", "rows", 4) as progress:
        progress.update(4, "nearly done")
    shown = sys.stderr.getvalue()
    assert all(part in shown for part in ("reading", "4/4", "nearly done"))
    assert not caplog.records


def test_cancellation_check_ends_the_work_of_its_own_thread():
    def check():
        if len(done) == 2:
            raise TimeoutError

    def read():
        for batch in track([[1], [2], [3]], "reading", 3):
            with ThreadPoolExecutor() as other:
                assert other.submit(list, track([[1], [2], [3]], "reading", 3)).result()
            done.append(batch)

    done = []
    with pytest.raises(TimeoutError), cancellation_check(check):
        read()
    assert done == [[1], [2]]
    assert list(track([[1], [2], [3]], "reading", 3)) == [[1], [2], [3]]
