"""Train one experiment that a few options select."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from click import ClickException

from submanifold.common.errors import UserError, did_you_mean, error_prefix
from submanifold.common.files import printable
from submanifold.config.cache_keys import RAW_FOLDER
from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.config.merge import entry, manifold_stages, merge
from submanifold.config.project import conf_source
from submanifold.config.schema import flatten
from submanifold.data.prepare import check
from submanifold.data.settings import ImageSettings
from submanifold.inference.records import RunRecord
from submanifold.runs.session import run_pipeline


@dataclass(frozen=True)
class Selection:
    """The experiment that options select.

    Attributes:
        record: The record of its run.
        params: Kedro's runtime parameters.
    """

    record: RunRecord
    params: dict[str, Any]


def select(
    project: Path,
    data: str,
    given: Mapping[str, Any],
    dim: int | None = None,
    size: int | None = None,
    minutes: float | None = None,
    settings: Sequence[str] = (),
) -> Selection:
    """Select and check an experiment.

    Args:
        project: Folder of the project.
        data: Folder or zip of images, a table, or the name of a dataset.
        given: Parameters that are single values, such as the method.
        dim: Dimension of the manifold.
        size: Side of the images.
        minutes: Time of training, to which the steps of all phases are scaled.
        settings: Other settings, as ``stage_1.flow.width=128``.

    Raises:
        UserError: A name is unknown, or a value is not allowed.
    """
    with _named_as_options():
        tables = _loader(project, {}).tables
        params = merge(dict(given), _data_settings(data, tables["datasets"]))
        if size is not None:
            params = merge(params, {"data": {"size": size}})
        if dim is not None:
            params = merge(params, _dim_settings(dim, params, tables))
        if minutes is not None:
            params = merge(params, {"training": {"minutes": minutes}})
        params = _merge_settings(params, _parse_settings(settings))
        loader = _loader(project, params)
        record = loader.record()
        return Selection(record, {**params, "name": record.name})


def run(selection: Selection, project: Path) -> None:
    """Compute what is missing of an experiment, in an MLflow run.

    Raises:
        UserError: The data or this machine do not fit.
    """
    with _named_as_options():
        run_pipeline(project, "hierarchical", selection.params)


def _loader(project: Path, params: Mapping[str, Any]) -> ExperimentConfigLoader:
    conf = str(conf_source(project))
    return ExperimentConfigLoader(conf, runtime_params=dict(params), **LOADER_ARGS)


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Name settings in messages as ``submanifold train`` takes them."""
    try:
        yield
    except (UserError, ClickException) as error:
        message = error.message if isinstance(error, ClickException) else str(error)
        message = message.replace("--params=", "--set ")
        if "--" not in message and (fixes := re.findall(r"\bdata\.[\w.]+=", message)):
            message += f" In this command, use --set {fixes[-1]}<value>."
        raise UserError(message) from error


def _parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse ``stage_1.dim=300`` as nested settings."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not all(path.split(".")):
            raise UserError(f"--set: expected <setting>=<value>, got {printable(text)}.")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set: expected a YAML value, got {printable(text)}.") from error
        for name in reversed(path.split(".")):
            nested = {name: nested}
        settings = merge(settings, nested)
    return settings


def check_images(loader: ExperimentConfigLoader) -> None:
    """Check the images of an experiment, within a second, unless they must be downloaded first.

    Raises:
        UserError: The images cannot be used.
    """
    settings = loader.experiment.data
    if isinstance(settings, ImageSettings):
        folder = loader.project / loader["catalog"]["data_folder"]["filepath"]
        with error_prefix("data"):
            check(settings, folder, loader.project / RAW_FOLDER)


def _data_settings(data: str, datasets: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(data).expanduser()
    if path.exists():
        from submanifold.data.tables.files import is_table  # imports pandas

        dataset = "table" if is_table(path) else "folder"
        return {"dataset": dataset, "data": {"path": str(path.resolve())}}
    if data in datasets:
        return {"dataset": data}
    known = [*datasets, *(each.name for each in Path.cwd().iterdir())]
    raise UserError(
        f"DATA: expected an existing folder or zip of images, a table, or one of the datasets "
        f"{', '.join(datasets)}, got "
        f"{printable(data)}.{did_you_mean(data.rstrip('/'), known)}"
    )


def _dim_settings(dim: int, params: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Set the dimension of the last stage that has one, and of stages that keep it."""
    dataset = entry(tables["datasets"], params["dataset"], "dataset")
    method = entry(tables["methods"], params.get("method", dataset["method"]), "method")
    stages, _ = manifold_stages(method, dataset)
    if not stages:
        raise UserError(
            f"--dim: expected none with method={method['name']}, whose density is on all of space, "
            f"got {dim}. Omit it, or choose another --method, such as density-first."
        )
    return {name: {"dim": dim} for name in stages}


def _merge_settings(params: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Merge the settings of ``--set``; refuse those that another option has set."""
    if twice := flatten(params).keys() & flatten(settings).keys():
        raise UserError(f"--set {min(twice)}: expected one value, but another option sets it.")
    return merge(params, settings)
