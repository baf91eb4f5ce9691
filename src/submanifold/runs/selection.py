"""The experiment that a few options select."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submanifold.common.errors import unexpected
from submanifold.common.settings import flatten
from submanifold.config.loader import load_configuration
from submanifold.config.merge import AUTO, entry, find_data, merge
from submanifold.config.project import conf_source
from submanifold.config.schema import nest
from submanifold.inference.records import RunRecord, release_name


def select_experiment(
    project: Path,
    data: str,
    options: Mapping[str, Any],
    dim: int | None,
    params: Mapping[str, Any],
    again: bool = False,
) -> RunRecord:
    """Select and check an experiment.

    ``options`` are settings by their names with dots, None for the default; ``params`` are nested.
    ``again`` removes the record of another run that has the name.
    """
    conf = conf_source(project)
    tables = load_configuration(conf).tables
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen |= _data_settings(data, tables["datasets"])
    others = flatten(params)
    if options.get("method") not in (None, AUTO):
        entry(tables["methods"], options["method"], "method", "--method")
    if dim is not None:
        chosen |= _dim_settings(dim, tables | others | chosen)
    if twice := chosen.keys() & others.keys():
        raise unexpected(min(twice), "one value", "that of another option, too", "Omit one of them")
    configuration = load_configuration(conf, merge(nest(chosen), params))
    configuration.validate()
    if again:
        if (name := configuration.experiment.name) is None:
            raise unexpected("--again", "a name with it", "none", "Add --name=<name>, or omit it")
        configuration.check_images()
        release_name(project, name, configuration.artifact_keys["model"])
    return configuration.record()


def _data_settings(data: str, datasets: Mapping[str, Any]) -> dict[str, Any]:
    path = find_data("DATA", data, datasets)
    if isinstance(path, str):
        return {"dataset": path}
    from submanifold.data.tables.files import is_table  # imports pandas

    dataset = "table" if is_table(path) else "folder"
    return {"dataset": dataset, "data.path": str(path.resolve())}


def _dim_settings(dim: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Set the dimension of the last stage that has one, and of stages that keep it."""
    dataset = entry(parameters["datasets"], parameters["dataset"], "dataset")
    name = dataset["method"] if parameters["method"] == AUTO else parameters["method"]
    method = entry(parameters["methods"], name, "method")
    dims = {
        stage: {**method[stage], **dataset.get(stage, {})}.get("dim")
        for stage in method
        if stage.startswith("stage_")
    }
    last = [chosen for chosen in dims.values() if chosen is not None][-1:]
    if not last:
        expected = f"none with method={name}, whose density is on all of space"
        fix = "Omit it, or choose another --method, such as density-first"
        raise unexpected("--dim", expected, dim, fix)
    return {f"{stage}.dim": dim for stage, chosen in dims.items() if [chosen] == last}
