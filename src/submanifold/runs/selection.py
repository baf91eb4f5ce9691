"""The experiment that a few options select."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from submanifold.common.errors import UserError, did_you_mean, printable, unexpected
from submanifold.config.loader import load_configuration
from submanifold.config.merge import entry
from submanifold.config.project import conf_source
from submanifold.config.schema import flatten, nest
from submanifold.inference.records import RunRecord


def select(
    project: Path, data: str, options: Mapping[str, Any], dim: int | None, settings: Sequence[str]
) -> RunRecord:
    """Select and check an experiment.

    ``options`` are settings by their names with dots, None for the default, and ``settings`` texts
    as ``stage_1.flow.width=128``.
    """
    conf = conf_source(project)
    tables = load_configuration(conf).tables
    params = {name: value for name, value in options.items() if value is not None}
    params |= _data_settings(data, tables["datasets"])
    if dim is not None:
        params |= _dim_settings(dim, params, tables)
    others = flatten(_parse_settings(settings))
    if twice := params.keys() & others.keys():
        raise UserError(f"--set {min(twice)}: expected one value, but another option sets it.")
    return load_configuration(conf, nest(params | others)).record()


def _parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    for text in texts:
        if not re.match(r"[^.=]+(\.[^.=]+)*=", text):
            raise UserError(f"--set: expected <setting>=<value>, got {printable(text)}.")
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.from_dotlist([*texts]))
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"--set: expected YAML values, got {printable(str(error))}.") from error
    return settings


def _data_settings(data: str, datasets: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(data).expanduser()
    if data and path.exists():
        from submanifold.data.tables.files import is_table  # imports pandas

        dataset = "table" if is_table(path) else "folder"
        return {"dataset": dataset, "data.path": str(path.resolve())}
    if data in datasets:
        return {"dataset": data}
    known = [*datasets, *(file.name for file in Path.cwd().iterdir())]
    raise UserError(
        f"DATA: expected an existing folder or zip of images, a table, or one of the datasets "
        f"{', '.join(datasets)}, got {printable(data)}.{did_you_mean(data.rstrip('/'), known)}"
    )


def _dim_settings(dim: int, params: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Set the dimension of the last stage that has one, and of stages that keep it."""
    dataset = entry(tables["datasets"], params["dataset"], "dataset")
    name = params.get("method", dataset["method"])
    method = entry(tables["methods"], name, "method")
    dims = {stage: {**method[stage], **dataset.get(stage, {})}.get("dim")
            for stage in method if stage.startswith("stage_")}  # fmt: skip
    last = [chosen for chosen in dims.values() if chosen is not None][-1:]
    if not last:
        expected = f"none with method={name}, whose density is on all of space"
        fix = "Omit it, or choose another --method, such as density-first"
        raise unexpected("--dim", expected, dim, fix)
    return {f"{stage}.dim": dim for stage, chosen in dims.items() if [chosen] == last}
