"""Train one experiment that a few options select."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click import ClickException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from submanifold.common.errors import UserError, did_you_mean, printable
from submanifold.config.loader import load_configuration
from submanifold.config.merge import entry, manifold_stages, merge
from submanifold.config.project import conf_source
from submanifold.config.schema import flatten
from submanifold.inference.records import RunRecord
from submanifold.runs.session import run_pipeline


def select(
    project: Path,
    data: str,
    choices: Mapping[str, Any],
    dim: int | None = None,
    size: int | None = None,
    minutes: float | None = None,
    settings: Sequence[str] = (),
) -> RunRecord:
    """Select and check an experiment.

    Args:
        project: Folder of the project.
        data: Folder or zip of images, a table, or the name of a dataset.
        choices: Parameters that are single values, such as the method.
        dim: Dimension of the manifold.
        size: Side of the images.
        minutes: Time of training, to which the steps of all phases are scaled.
        settings: Other settings, as ``stage_1.flow.width=128``.

    Raises:
        UserError: A name is unknown, or a value is not allowed.
    """
    with _named_as_options():
        conf = conf_source(project)
        tables = load_configuration(conf).tables
        params = {**choices, **_data_settings(data, tables["datasets"])}
        if size is not None:
            params = merge(params, {"data": {"size": size}})
        if dim is not None:
            params |= _dim_settings(dim, params, tables)
        if minutes is not None:
            params["training"] = {"minutes": minutes}
        others = _parse_settings(settings)
        if twice := flatten(params).keys() & flatten(others).keys():
            raise UserError(f"--set {min(twice)}: expected one value, but another option sets it.")
        return load_configuration(conf, merge(params, others)).record()


def run(record: RunRecord, project: Path) -> None:
    """Compute what is missing of an experiment, in an MLflow run.

    Raises:
        UserError: The data or this machine do not fit.
    """
    with _named_as_options():
        run_pipeline(project, "hierarchical", {**record.params, "name": record.name})


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Name settings in messages as ``submanifold train`` takes them."""
    try:
        yield
    except ClickException as error:
        message = error.message.replace("--params=", "--set ")
        if "--" not in message and (fixes := re.findall(r"\bdata\.[\w.]+=", message)):
            message += f" In this command, use --set {fixes[-1]}<value>."
        raise UserError(message) from error


def _parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse ``stage_1.dim=300`` as nested settings."""
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
    if path.exists():
        from submanifold.data.tables.files import is_table  # imports pandas

        dataset = "table" if is_table(path) else "folder"
        return {"dataset": dataset, "data": {"path": str(path.resolve())}}
    if data in datasets:
        return {"dataset": data}
    known = [*datasets, *(file.name for file in Path.cwd().iterdir())]
    raise UserError(
        f"DATA: expected an existing folder or zip of images, a table, or one of the datasets "
        f"{', '.join(datasets)}, got "
        f"{printable(data)}.{did_you_mean(data.rstrip('/'), known)}"
    )


def _dim_settings(dim: int, params: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Set the dimension of the last stage that has one, and of stages that keep it."""
    dataset = entry(tables["datasets"], params["dataset"], "dataset")
    name = params.get("method", dataset["method"])
    stages, _ = manifold_stages(entry(tables["methods"], name, "method"), dataset)
    if not stages:
        raise UserError(
            f"--dim: expected none with method={name}, whose density is on all of space, "
            f"got {dim}. Omit it, or choose another --method, such as density-first."
        )
    return {name: {"dim": dim} for name in stages}
