"""Records of runs, whose names are unique also for runs that start at once."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from submanifold.common.errors import UserError
from submanifold.inference.records import (
    RECORDS,
    RunRecord,
    find_record,
    read_records,
    write_record,
)


def run(key, started="2026-01-01T00:00:00", name=""):
    return RunRecord(name, key, "photos", "Glow", started, "m.safetensors", "m.json", "r.html")


def test_runs_that_start_at_once_have_different_names(tmp_path):
    keys = "abcdefgh"
    with ThreadPoolExecutor(len(keys)) as threads:
        written = [*threads.map(lambda key: write_record(tmp_path, run(key), None), keys)]
    assert len({record.name for record in written}) == len(keys)
    records = {record.key: record for record in read_records(tmp_path)}
    assert records == dict(zip(keys, written, strict=True))


def test_a_record_keeps_the_name_and_the_start_of_an_equal_run(tmp_path):
    first = write_record(tmp_path, run("a"), "mine")
    assert write_record(tmp_path, run("a", started="2026-01-02T00:00:00"), None) == first
    with pytest.raises(UserError, match="name: expected a name that no run with other settings"):
        write_record(tmp_path, run("b"), "mine")
    assert read_records(tmp_path) == [first]


def test_a_record_that_cannot_be_read_is_named_and_keeps_its_name(tmp_path, caplog):
    first = write_record(tmp_path, run("a"), None)
    path = tmp_path / RECORDS / f"{first.name}.json"
    path.write_text("{")
    assert write_record(tmp_path, run("b"), None).name == f"{first.name}-2"
    with pytest.raises(UserError, match="name: expected a name that no run with other settings"):
        write_record(tmp_path, run("a"), first.name)
    assert path.read_text() == "{"
    assert caplog.text.count(f"{path}: expected the record of a run, got a damaged file.") == 1


RUN = """
from pathlib import Path
from submanifold.common.files import locked
from submanifold.inference.records import RECORDS, RunRecord, write_record
project = Path(sys.argv[1])
record = RunRecord("", "key", "photos", "Glow", "2026", "model", "metrics", "report", {}, ".1.lock")
with locked(project / RECORDS, "it", record.lock):
    write_record(project, record, "mine")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.fault
def test_a_run_on_another_host_is_running_until_its_process_dies(tmp_path, container):
    """Its process has the number of one that is alive here: 1."""
    process = container(RUN, tmp_path)
    assert process.stdout.readline() == "ready\n"
    (record,) = read_records(tmp_path)
    assert record.state(tmp_path) == "running"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while record.state(tmp_path) == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert record.state(tmp_path) == "interrupted"
    (tmp_path / record.model).touch()
    assert record.state(tmp_path) == "trained"


def test_records_of_earlier_versions_are_read(tmp_path):
    old = asdict(run("a", name="old")) | {"host": "elsewhere", "pid": os.getpid()}
    del old["lock"]
    (tmp_path / RECORDS).mkdir(parents=True)
    (tmp_path / RECORDS / "old.json").write_text(json.dumps(old))
    (record,) = read_records(tmp_path)
    assert record.state(tmp_path) == "interrupted"


@pytest.mark.parametrize(
    "content",
    [
        [],
        5,
        "name",
        None,
        {},
        {"name": "other"},
        {**asdict(run("a")), "started": 1},
        {**asdict(run("a")), "report": None},
    ],
)
def test_other_json_in_the_folder_of_records_is_no_run(tmp_path, content):
    record = write_record(tmp_path, run("a"), "mine")
    (tmp_path / RECORDS / "other.json").write_text(json.dumps(content))
    assert read_records(tmp_path) == [record]
    assert find_record(tmp_path, "mine") == record
