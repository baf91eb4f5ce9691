"""Records of runs, whose names are unique also for runs that start at once."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from threading import Barrier, BrokenBarrierError

import pytest

from submanifold.common.errors import UserError
from submanifold.inference import records
from submanifold.inference.records import FOLDER, RunRecord, find_record, read_records, write_record


def run(key, started="2026-01-01T00:00:00", name=""):
    return RunRecord(name, key, "photos", "Glow", started, "m.safetensors", "m.json", "r.html")


def test_runs_that_start_at_once_have_different_names(tmp_path, monkeypatch):
    choose, together = records.choose_name, Barrier(2)

    def choose_slowly(*arguments):
        name = choose(*arguments)
        with suppress(BrokenBarrierError):  # wait for another run that chooses, too, if it can
            together.wait(0.3)
        return name

    monkeypatch.setattr(records, "choose_name", choose_slowly)
    with ThreadPoolExecutor(2) as threads:
        written = [*threads.map(lambda key: write_record(tmp_path, run(key), None), "ab")]
    first, second = sorted(record.name for record in written)
    assert second == f"{first}-2"
    assert {record.key: record for record in read_records(tmp_path)} == dict(
        zip("ab", written, strict=True)
    )


def test_a_record_keeps_the_name_and_the_start_of_an_equal_run(tmp_path):
    first = write_record(tmp_path, run("a"), "mine")
    assert write_record(tmp_path, run("a", started="2026-01-02T00:00:00"), None) == first
    with pytest.raises(UserError, match="name: expected a name that no run with other settings"):
        write_record(tmp_path, run("b"), "mine")
    assert read_records(tmp_path) == [first]


@pytest.mark.parametrize("content", [
    [], 5, "name", None, {}, {"name": "other"},
    {**asdict(run("a")), "started": 1}, {**asdict(run("a")), "report": None},
])  # fmt: skip
def test_other_json_in_the_folder_of_records_is_no_run(tmp_path, content):
    record = write_record(tmp_path, run("a"), "mine")
    (tmp_path / FOLDER / "other.json").write_text(json.dumps(content))
    assert read_records(tmp_path) == [record]
    assert find_record(tmp_path, "mine") == record
