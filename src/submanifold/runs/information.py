"""Facts about the current run for the headers of reports, and commands that use its model."""

import math
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow

from submanifold.evaluation.calibration import Calibration
from submanifold.flows import context_of
from submanifold.inference.records import read_records
from submanifold.models import Hierarchy, Model

USUAL_ALPHA = 5
"""False-positive rate in percent of the command ``score``, if the calibration supports it."""


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
    active = mlflow.active_run()
    folder = Path.cwd()
    names = [run.name for run in read_records(folder) if run.key == model.parent.name]
    return {
        "command": _command(sys.argv),
        "version": version("submanifold"),
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "model": str(model.relative_to(folder) if model.is_relative_to(folder) else model),
        "name": names[-1] if names else None,
        "mlflow_run": None if active is None else active.info.run_id,
    }


def usage_commands(model: Model, name: str) -> list[tuple[str, str]]:
    """Return commands that use a model, by the name of its run or its folder, with explanations."""
    command, context = f"submanifold %s {shlex.quote(name)}", context_of(model)
    of_table = "table" in model.data
    info = (command % "info", "architecture, data and training")
    if not of_table and "size" not in model.data:
        return [(f"{command % 'sample'} -n 1000 --out=samples.npz", "samples"), info]
    inputs, sampled = ("new.csv", "-n 1000") if of_table else ("new.jpg", "-n 64")
    lines = [
        ("project", inputs, "default projections onto the manifold"),
        ("encode", inputs, "coordinates on and off the manifold"),
        ("sample", inputs if "columns" in context else sampled, "samples"),
    ]
    if "groups" in model.calibration:
        least = Calibration.from_dict(model.calibration).smallest_p_value
        options = f"{inputs} --alpha={max(USUAL_ALPHA, math.ceil(100 * least))}%"
        lines.insert(0, ("score", options, "densities, p-values, anomalies"))
    if isinstance(model, Hierarchy) and not of_table:
        dim = "" if model.has_density else f" --dim={model.dim}"
        options = f"{inputs} --simulate --task=denoise:0.1{dim}"
        lines.append(("restore", options, "noise is added to pictures and removed"))
    label = " --label=0" if "classes" in context else ""
    return [*((f"{command % verb} {rest}{label}", text) for verb, rest, text in lines), info]


def _command(arguments: list[str]) -> str:
    program = Path(arguments[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *arguments[1:]])


@cache
def _commit() -> str | None:
    """Return the commit of this package's checkout, with ``-dirty`` if files have changed."""
    here = Path(__file__)  # an installed copy may be inside of another project's checkout
    try:
        for arguments in (f"ls-files --error-unmatch {here.name}",
                          "describe --always --dirty --exclude=*"):  # fmt: skip
            command = ["git", "-C", str(here.parent), *arguments.split()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
