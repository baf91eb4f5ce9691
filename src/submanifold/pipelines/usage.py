"""What all pages say about the run that wrote them, and commands that use its model."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

Facts = list[tuple[str, Any]]


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


def model_command(run: Mapping[str, Any], name: str, rest: str = "") -> str:
    """Return a command that applies the model of a run.

    Example:
        >>> model_command({"name": "holiday"}, "sample", "-n 64")
        'submanifold sample holiday -n 64'
    """
    model = run.get("name") or run["model"]
    return " ".join(filter(None, ["submanifold", name, shlex.quote(model), rest]))


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
