"""Named runs: ``data/runs/<name>.json`` records a run's settings and the paths of its outputs."""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from submanifold.common.errors import UserError, did_you_mean
from submanifold.common.files import is_alive, printable, read_json, write_json

FOLDER = Path("data/runs")
MODEL_FILE = "hierarchy.safetensors"


@dataclass(frozen=True)
class RunRecord:
    """A run and where its outputs are; paths are relative to the project.

    Attributes:
        key: Cache key of its model: runs with equal settings have equal keys.
        started: Local time of the first start, in ISO format.
        params: The parameters that the user set.
    """

    name: str
    key: str
    dataset: str
    method: str
    started: str
    model: str
    metrics: str
    report: str
    params: dict[str, Any] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def state(self, project: Path) -> str:
        """Return ``finished``, ``running``, ``trained`` (not evaluated) or ``interrupted``."""
        if (project / self.report).exists():
            return "finished"
        if self.host != socket.gethostname() or is_alive(self.pid):
            return "running"
        return "trained" if (project / self.model).exists() else "interrupted"


def read_records(project: Path) -> list[RunRecord]:
    """Read the records of a project's runs, the oldest first."""
    found = [read_json(path) for path in sorted((project / FOLDER).glob("*.json"))]
    names = {each.name for each in fields(RunRecord)}  # earlier versions have written others
    records = (RunRecord(**{k: v for k, v in each.items() if k in names}) for each in found if each)
    return sorted(records, key=lambda each: each.started)


def choose_name(project: Path, given: str | None, key: str, method: str) -> str:
    """Return the name of a run: the given one, that of an equal run, or date and method.

    Raises:
        UserError: A run with other settings has the given name.
    """
    records = read_records(project)
    taken = {each.name: each.key for each in records}
    if given is not None:
        if taken.get(given, key) != key:
            raise UserError(
                f"name: expected a name that no run with other settings has, got {given}. Choose "
                f"another name, or delete {FOLDER / given}.json."
            )
        return given
    if equal := [each.name for each in records if each.key == key]:
        return equal[-1]
    first = f"{datetime.now():%Y-%m-%d}-{method}"
    names = chain([first], (f"{first}-{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def write_record(project: Path, record: RunRecord) -> None:
    """Write a record; of a run that started before, its start is kept."""
    path = project / FOLDER / f"{record.name}.json"
    before = read_json(path)
    if before and before["key"] == record.key:
        record = replace(record, started=before["started"])
    write_json(path, asdict(record))


def find_record(project: Path, name: str) -> RunRecord:
    """Return the record of a run.

    Raises:
        UserError: There is no run of this name.
    """
    records = {each.name: each for each in read_records(project)}
    if name not in records:
        raise UserError(f"NAME: expected the name of a run, got {name}.{_hint(name, records)}")
    return records[name]


def records_folder() -> Path:
    """Return the closest parent of the current folder with runs, or the current folder."""
    folders = (Path.cwd(), *Path.cwd().parents)
    return next((each for each in folders if (each / FOLDER).is_dir()), Path.cwd())


def model_path(given: str) -> Path:
    """Find the model file that a user means by a path or by the name of a run.

    Args:
        given: A model file, a folder with one, or the name of a run of the project that contains
            the current folder.

    Raises:
        UserError: There is none.
    """
    path = Path(given)
    if path.is_file():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    project = records_folder()
    records = {each.name: each for each in read_records(project)}
    if given in records:
        found = project / records[given].model
        if not found.is_file():
            raise UserError(
                f"MODEL: expected a run whose training is finished, got {given}, which is "
                f"{records[given].state(project)}. Start the run again: it continues."
            )
        return found
    what = f", a folder without {MODEL_FILE}" if path.is_dir() else ""
    raise UserError(
        f"MODEL: expected a model file, its folder, or the name of a run, got "
        f"{printable(given)}{what}.{_hint(given, records)}"
    )


def _hint(name: str, records: Mapping[str, RunRecord]) -> str:
    return did_you_mean(name, records) + " `submanifold runs` lists the names."
