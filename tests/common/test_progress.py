import io
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from submanifold.common import progress
from submanifold.common.progress import ProgressBar, cancellation_check, track


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


@pytest.fixture
def terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120)
    )
    return screen


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO()))


def test_it_says_what_is_done_how_fast_and_for_how_long_still(clock, no_terminal):
    meter = ProgressBar("reading", "images", total=100)
    clock(2)
    meter.update(20)
    assert str(meter) == "reading: 20/100 images, 10 images/s, 8 s left"


def test_what_was_done_before_does_not_count_for_the_rate(clock, no_terminal):
    meter = ProgressBar("training", "steps", total=100, done=60)
    clock(2)
    meter.update(20)
    assert str(meter) == "training: 80/100 steps, 10 steps/s, 2 s left"


def test_a_note_takes_the_place_of_the_rate_and_stays(clock, no_terminal):
    meter = ProgressBar("training", "steps", total=10)
    clock(1)
    meter.update(1, "loss 2")
    meter.update(1)
    assert str(meter) == "training: 2/10 steps, loss 2, 4 s left"


def test_an_unknown_total_and_an_unstarted_work_promise_nothing(clock, no_terminal):
    meter = ProgressBar("reading", "images")
    clock(1)
    meter.update(5)
    assert str(meter) == "reading: 5/? images, 5 images/s"
    assert str(ProgressBar("reading", "images", 7)) == "reading: 0/7 images, 0 images/s"


def test_going_back_lowers_what_is_done(clock, no_terminal):
    meter = ProgressBar("training", "steps", total=100)
    clock(1)
    meter.update(20)
    meter.update(-10)
    assert meter.done == 10


def test_after_a_reset_counting_starts_at_zero(clock, no_terminal):
    meter = ProgressBar("download", "B", total=100, done=40)
    clock(1)
    meter.reset()
    assert str(meter) == "download: 0/100 B, 0 B/s"
    # pooch resets a bar that has ended and fills it at once: the time that it took still counts
    clock(1)
    meter.update(50)
    assert str(meter) == "download: 50/100 B, 25 B/s, 2 s left"


def test_without_a_terminal_it_logs_a_line_every_so_often(clock, no_terminal, caplog):
    with (
        caplog.at_level(logging.INFO, "submanifold.common.progress"),
        ProgressBar("reading", "rows", 9) as meter,
    ):
        for _ in range(9):
            clock(4)
            meter.update(1)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "reading: 3/9 rows", "reading: 6/9 rows", "reading: 9/9 rows",
    ]  # fmt: skip


def test_on_a_terminal_it_draws_a_bar_and_logs_nothing(terminal, caplog):
    with caplog.at_level(logging.INFO), ProgressBar("reading", "rows", 4, every=0) as meter:
        meter.update(1)
        meter.update(3, "nearly there")
    shown = terminal.getvalue()
    assert "reading" in shown
    assert "4/4" in shown
    assert "nearly there" in shown
    assert not caplog.records


def test_the_bar_is_taken_down_when_the_work_fails(terminal):
    with pytest.raises(RuntimeError), ProgressBar("reading", "rows", 4) as meter:
        raise RuntimeError
    assert not meter._bar.live.is_started


def test_a_check_ends_the_work_between_two_batches_of_its_thread_alone(no_terminal):
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
