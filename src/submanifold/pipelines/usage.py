"""What all pages say about the run that wrote them, and commands that use its model."""

import ast
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from submanifold.inference.records import read_records

Facts = list[tuple[str, Any]]
TAGS = ("kedro_command", "runtime_params", "env")
"""Tags of MLflow runs that contain their command."""


def run_facts(run: Mapping[str, Any]) -> Facts:
    """Return facts for a page's header, None for unknown ones.

    Args:
        run: The result of :func:`submanifold.runs.information.information`.
    """
    version = [run["version"], run["commit"] and f"(commit {run['commit']})"]
    return [
        ("command", run["command"]),
        ("submanifold", " ".join(filter(None, version)) or None),
        ("date", run["date"]),
        ("model", run["model"]),
        ("MLflow run", run["mlflow_run"]),
    ]


def of_rows(text: str) -> str:
    """Replace the words for images in a text by those for rows of a table."""
    changes = {", pixels in [0, 1]": ", standardized columns", "an image": "a row",
               "images": "rows", "image": "row"}  # fmt: skip
    for word, other in changes.items():
        text = text.replace(word, other)
    return text


def run_of_model(key: str, project: Path) -> dict[str, str | None]:
    """Return the newest name of the runs of a model, or None, and its folder.

    Args:
        key: Cache key of the model.
        project: Folder of the project.
    """
    names = [each.name for each in read_records(project) if each.key == key]
    return {"name": names[-1] if names else None, "model": f"data/06_models/{key}"}


def model_command(run: Mapping[str, Any], name: str, rest: str = "") -> str:
    """Return a command that applies the model of a run.

    Example:
        >>> model_command({"name": "holiday"}, "sample", "-n 64")
        'submanifold sample holiday -n 64'
    """
    model = run.get("name") or run["model"]
    return " ".join(filter(None, ["submanifold", name, shlex.quote(model), rest]))


def training_command(row: Mapping[Any, Any], without: str = "name") -> str | None:
    """Return the command of an MLflow run without one parameter, or None if it is not known.

    Args:
        row: A row of :func:`submanifold.runs.tracking.find_runs`.
        without: The parameter to leave out, besides the name of the run.

    Example:
        >>> tags = {"tags.kedro_command": "kedro run --pipeline=joint"}
        >>> tags["tags.runtime_params"] = "{'name': 'a', 'stage_1': {'dim': 9, 'noise': None}}"
        >>> training_command(tags)
        'submanifold run --pipeline=joint --params=stage_1.dim=9,stage_1.noise=null'
    """
    command, given, env = (row.get(f"tags.{name}") for name in TAGS)
    if not isinstance(command, str):
        return None
    try:
        params = ast.literal_eval(given) if isinstance(given, str) else {}
    except (ValueError, SyntaxError):  # cut by MLflow
        return None
    pairs = [pair for name, pair in _flat(params) if name not in {"name", without}]
    if any("," in pair for pair in pairs):  # separates parameters
        return None
    found = [command.replace("kedro ", "submanifold ", 1)]
    found += [f"--env={env}"] if isinstance(env, str) else []
    found += [f"--params={shlex.quote(','.join(pairs))}"] if pairs else []
    return " ".join(found)


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and ``name=value`` of nested parameters."""
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = str(value).lower() if isinstance(value, bool) else value
            yield f"{prefix}{key}", f"{prefix}{key}={'null' if value is None else text}"


def repeated(run: Mapping[str, Any], **changes: str) -> str:
    """Return the command of a run with other values of parameters.

    Example:
        >>> command = "kedro run --pipeline=ood --params=dataset=photos,ood=mnist"
        >>> repeated({"command": command}, ood="PICTURES")
        'kedro run --pipeline=ood --params=dataset=photos,ood=PICTURES'
    """
    command = run["command"]
    for name, value in changes.items():
        pattern = rf"(?<![\w.]){re.escape(name)}=[^,\s']*"
        if re.search(pattern, command):
            command = re.sub(pattern, f"{name}={value}", command)
        elif "--params=" in command:
            command = command.replace("--params=", f"--params={name}={value},", 1)
        else:
            command += f" --params={name}={value}"
    return command
