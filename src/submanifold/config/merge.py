"""Entries of tables, and how settings are merged over each other."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from submanifold.common.errors import UserError, did_you_mean, list_names, printable, unexpected
from submanifold.common.files import expand_user

Tree = dict[str, Any]
AUTO = "auto"  # the method of the dataset

# A comma before a name and "=", and before an even number of quotes: outside of quoted text
_SEPARATOR = re.compile(r""",(?=\s*[^\W\d][\w.-]*\s*=[^"]*(?:"[^"]*"[^"]*)*$)""")


def parse_params(texts: Sequence[str]) -> Tree:
    """Parse settings of the command line, such as ``data.channels=1,stage_1.flow.steps=[8,4,2]``.

    Values are YAML. Unlike in Kedro they may contain commas.

    Example:
        >>> parse_params(["seed=1,data.drop=name, city,data.labels=[0,1]"])
        {'seed': 1, 'data': {'drop': 'name, city', 'labels': [0, 1]}}
    """
    from omegaconf import OmegaConf

    pairs = []
    for item in (item for text in texts for item in _SEPARATOR.split(text.strip(" ,"))):
        name, sign, value = item.partition("=")
        if not sign or not all(part.strip() for part in name.split(".")):
            raise UserError(f"--params: expected <setting>=<value>, got {printable(item)}.")
        pairs.append(f"{name.strip()}={value}")
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.from_dotlist(pairs))
    except Exception as error:  # parsers of YAML raise many kinds of errors
        raise UserError(f"--params: expected YAML values, got {printable(str(error))}.") from error
    return settings


def format_params(settings: Mapping[str, Any]) -> str:
    """Write settings by names with dots as :func:`parse_params` reads them.

    Example:
        >>> format_params({"charts": None, "data.labels": [0, 1], "data.path": "a, b=c"})
        'charts=null,data.labels=[0, 1],data.path="a, b=c"'
    """
    return ",".join(f"{name}={_format(value)}" for name, value in settings.items())


def _format(value: Any) -> str:
    with suppress(UserError):
        if parse_params([f"value={value}"]) == {"value": value}:
            return str(value)
    return json.dumps(value)


def find_data(setting: str, name: str, datasets: Mapping[str, Any]) -> Path | str:
    """Return an existing path, or else the name of a dataset."""
    path = expand_user(name)
    if name and path.exists():
        return path
    if name in datasets:
        return name
    known = [*datasets, *(file.name for file in Path.cwd().iterdir())]
    expected = "an existing folder or zip of images, a table, or a dataset such as photos or mnist"
    hint = did_you_mean(name.rstrip("/"), known)
    raise unexpected(setting, expected, printable(name), hint=hint)


def group(name: str, value: Any) -> Tree:
    """Return a copy of a group of settings, empty for none; refuse a single value."""
    if value is not None and not isinstance(value, Mapping):
        fix = f"Set one of them: --params={name}.<name>=<value>"
        raise unexpected(name, "a group of settings", value, fix)
    return dict(value or {})


def entry(table: Mapping[str, Any], name: Any, what: str, option: str = "") -> Tree:
    """Return a copy of a table's entry; raise a :class:`.UserError` if there is none.

    Its message names the ``option`` of the command line that chose it, by default ``--params``.
    """
    if name not in list(table):
        hint = did_you_mean(str(name), table)
        expected = f"one of {list_names(table, str(name))}"
        fix = f"Change it with {option or f'--params={what}'}=<name>"
        raise unexpected(option or what, expected, name, fix, hint)
    where = f"{what}={name}"
    selected = {"phases": None, **group(where, table[name])}
    groups = {
        key: group(f"{where}: {key}", value)
        for key, value in selected.items()
        if key == "phases" or key.startswith("stage_")
    }
    for key, phase in groups["phases"].items():
        groups["phases"][key] = group(f"{where}: phases.{key}", phase)
    return selected | groups


def merge(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> Tree:
    """Merge nested settings; those of ``over`` win."""
    merged = dict(base)
    for key, value in over.items():
        name = f"{where}.{key}".removeprefix(".")
        is_group = isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], group(name, value), name) if is_group else value
    return merged
