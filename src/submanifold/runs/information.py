"""Facts about the current run for the headers of reports."""

import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow

from submanifold.inference.records import read_records


def information(model: Path) -> dict[str, Any]:
    """Return facts about this process and its run.

    Args:
        model: Path of the model's file.

    Returns:
        ``command``; ``version`` and ``commit`` of this package, the latter None outside of a git
        checkout; ``date`` in UTC; ``model``, relative to the current folder if it is inside;
        ``name``, that of the newest run with this model, or None; and the id
        ``mlflow_run``, or None.
    """
    run = mlflow.active_run()
    folder = Path.cwd()
    names = [each.name for each in read_records(folder) if each.key == model.parent.name]
    return {
        "command": _command(sys.argv),
        "version": _version(),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "model": str(model.relative_to(folder) if model.is_relative_to(folder) else model),
        "name": names[-1] if names else None,
        "mlflow_run": None if run is None else run.info.run_id,
    }


def _command(arguments: list[str]) -> str:
    program = Path(arguments[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *arguments[1:]])


def _version() -> str | None:
    try:
        return version("submanifold")
    except PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """Return the commit of this package's checkout, with ``-dirty`` if files have changed.

    An installed copy inside of another project's checkout has none.
    """
    here = Path(__file__)
    try:
        for arguments in (["ls-files", "--error-unmatch", here.name], ["describe", *_DESCRIBE]):
            command = ["git", "-C", str(here.parent), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


_DESCRIBE = ("--always", "--dirty", "--exclude=*")
