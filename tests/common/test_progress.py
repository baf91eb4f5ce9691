import logging

from submanifold.common.progress import ProgressBar, track


def test_log_lines_are_written_at_intervals_without_a_terminal(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with caplog.at_level(logging.INFO):
        with ProgressBar("reading", "rows", 5) as progress:
            for _ in range(5):
                now += 6
                progress.update(1)
        list(track([[1], [2]], "short", 2))
    lines = [record.message.split(",")[0] for record in caplog.records]
    assert lines == ["reading: 2/5 rows", "reading: 4/5 rows", "reading: 5/5 rows"]
