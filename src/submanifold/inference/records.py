"""Named runs: ``data/runs/<name>.json`` records a run's settings and the paths of its outputs."""

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from submanifold.common.errors import UserError, did_you_mean, unexpected
from submanifold.common.files import expand_user, is_locked, locked, read_json, write_json

log = logging.getLogger(__name__)

RECORDS = Path("data/runs")
MODEL_FILE = "hierarchy.safetensors"


@dataclass(frozen=True)
class RunRecord:
    """A run and where its outputs are; paths are relative to the project."""

    name: str
    key: str  # cache key of its model: runs with equal settings have equal keys
    dataset: str
    method: str
    started: str  # local time of the first start, in ISO format
    model: str
    metrics: str
    report: str
    params: dict[str, Any] = field(default_factory=dict)  # those that the user set
    lock: str = ""  # name of the file, next to the record, that its process locks

    def state(self, project: Path) -> str:
        """Return ``finished``, ``running``, ``trained`` (not evaluated) or ``interrupted``."""
        if (project / self.report).exists():
            return "finished"
        if is_locked(project / RECORDS / self.lock):
            return "running"
        return "trained" if (project / self.model).exists() else "interrupted"


def read_records(project: Path) -> list[RunRecord]:
    """Read the records of a project's runs, the oldest first.

    Other JSON files are ignored, damaged ones with a warning.
    """
    from pydantic import TypeAdapter, ValidationError  # loads slowly

    reader, records = TypeAdapter(RunRecord), list[RunRecord]()
    for path in sorted((project / RECORDS).glob("*.json")):
        if (content := read_json(path)) is None:
            _warn_of(path)
        with suppress(ValidationError):  # earlier versions have written more fields
            records.append(reader.validate_python(content))
    return sorted(records, key=lambda record: record.started)


@cache  # once in a command
def _warn_of(path: Path) -> None:
    log.warning(
        "%s: expected the record of a run, got a damaged file. Delete it; the command that "
        "started the run writes it again.",
        path,
    )


def choose_name(project: Path, chosen: str | None, key: str, method: str) -> str:
    """Return the name of a run: the chosen one, that of an equal run, or date and method.

    A chosen name that a run with other settings, or of an earlier version, has raises a UserError.
    """
    keys = {record.name: record.key for record in read_records(project)}
    taken = {path.stem for path in (project / RECORDS).glob("*.json")}
    if chosen is not None and chosen in taken and keys.get(chosen) != key:
        expected = "a name that no run with other settings, data, or code has"
        fix = "Choose another one, or give it to this run with `submanifold train --again`"
        raise unexpected("name", expected, chosen, fix)
    if chosen is not None:
        return chosen
    if equal := [name for name in keys if keys[name] == key]:
        return equal[-1]
    first = f"{datetime.now():%Y-%m-%d}-{method}"
    names = chain([first], (f"{first}-{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def release_name(project: Path, name: str, key: str) -> None:
    """Remove the record of another run with a name; a UserError if that run is running."""
    for record in read_records(project):
        if record.name == name and record.key == key:
            return
        if record.name == name and record.state(project) == "running":
            fix = "Wait for its end, or choose another one"
            raise unexpected("--name", "a name that no running run has", name, fix)
    Path(project, RECORDS, f"{name}.json").unlink(missing_ok=True)


def write_record(project: Path, record: RunRecord, chosen: str | None) -> RunRecord:
    """Record a run that starts, with a name that only equal runs have, and their first start."""
    with locked(project / RECORDS, "its record"):
        name = choose_name(project, chosen, record.key, record.method)
        path = project / RECORDS / f"{name}.json"
        starts = {record.name: record.started for record in read_records(project)}
        if name not in starts:
            path.touch(exist_ok=False)  # also where the folder cannot be locked
        record = replace(record, name=name, started=starts.get(name, record.started))
        write_json(path, asdict(record))
    return record


def find_record(
    project: Path, name: str, expected: str = "NAME: expected the name of a run"
) -> RunRecord:
    """Return the record of a run; a UserError begins with what is expected if there is none."""
    records = {record.name: record for record in read_records(project)}
    if name not in records:
        hint = did_you_mean(name, records)
        raise UserError(f"{expected}, got {name}.{hint} `submanifold runs` lists the names.")
    return records[name]


def records_folder() -> Path:
    """Return the closest parent of the current folder with runs, or the current folder."""
    folders = (Path.cwd(), *Path.cwd().parents)
    return next((folder for folder in folders if (folder / RECORDS).is_dir()), Path.cwd())


def model_path(name: str) -> Path:
    """Find a model file by its path, its folder, or the name of a run of the current project."""
    for path in (expand_user(name), expand_user(name) / MODEL_FILE):
        if path.is_file():
            return path
    project = records_folder()
    expected = f"MODEL: expected a model file, a folder with {MODEL_FILE}, or the name of a run"
    record = find_record(project, name, expected)
    path = project / record.model
    if not path.is_file():
        got = f"{name}, which is {record.state(project)}"
        fix = "Start the run again: it continues"
        raise unexpected("MODEL", "a run whose training is finished", got, fix)
    return path
