import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from submanifold.common.progress import ProgressBar, cancellation_check, track


def test_log_lines_are_written_at_intervals_without_a_terminal(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with caplog.at_level(logging.INFO):
        with ProgressBar("reading", "rows", 4) as progress:
            for _ in range(4):
                now += 6
                progress.update(1)
        list(track([[1], [2]], "short", 2))
    lines = [record.message.split(",")[0] for record in caplog.records]
    assert lines == ["reading: 2/4 rows", "reading: 4/4 rows"]


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
