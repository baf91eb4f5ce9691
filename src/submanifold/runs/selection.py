"""The experiment that a few options select."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submanifold.common.errors import unexpected
from submanifold.common.settings import flatten
from submanifold.config.loader import load_configuration
from submanifold.config.merge import entry, find_data, merge
from submanifold.config.project import conf_source
from submanifold.config.schema import nest
from submanifold.inference.records import RunRecord


def select(
    project: Path, data: str, options: Mapping[str, Any], dim: int | None, params: Mapping[str, Any]
) -> RunRecord:
    """Select and check an experiment.

    ``options`` are settings by their names with dots, None for the default; ``params`` are nested.
    """
    conf = conf_source(project)
    tables = load_configuration(conf).tables
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen |= _data_settings(data, tables["datasets"])
    if dim is not None:
        chosen |= _dim_settings(dim, chosen, tables)
    others = flatten(params)
    if twice := chosen.keys() & others.keys():
        raise unexpected(min(twice), "one value", "that of another option, too", "Omit one of them")
    return load_configuration(conf, merge(nest(chosen), params)).record()


def _data_settings(data: str, datasets: Mapping[str, Any]) -> dict[str, Any]:
    path = find_data("DATA", data, datasets)
    if isinstance(path, str):
        return {"dataset": path}
    from submanifold.data.tables.files import is_table  # imports pandas

    dataset = "table" if is_table(path) else "folder"
    return {"dataset": dataset, "data.path": str(path.resolve())}


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
