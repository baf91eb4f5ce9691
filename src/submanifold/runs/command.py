"""Commands ``train`` and ``runs``: one experiment from a few options, and the list of all runs."""

import difflib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from submanifold.common.errors import UserError
from submanifold.common.files import printable, read_json
from submanifold.config.merge import entry, merge
from submanifold.config.project import conf_source, configure, project_folder
from submanifold.inference.records import RunRecord, find_record, read_records

if TYPE_CHECKING:
    from submanifold.config.loader import ExperimentConfigLoader
    from submanifold.models import Model

log = logging.getLogger(__name__)

FIGURES = ("bits_per_dim", "nll", "mse", "nearest_mse")
"""Metrics in the list of runs."""
USUAL_ALPHA = 5
"""False-positive rate in percent of the command that is printed."""


def _settings(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """Parse ``stage_1.dim=300`` as nested settings."""
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not all(path.split(".")):
            raise click.BadParameter(f"expected <setting>=<value>, got {text}.")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise click.BadParameter(f"expected a YAML value, got {text}.") from error
        for name in reversed(path.split(".")):
            nested = {name: nested}
        settings = merge(settings, nested)
    return settings


@click.command()
@click.argument("data", metavar="DATA")
@click.option("--method", help="Training method.  [default: the dataset's, density-first]")
@click.option("--dim", type=click.IntRange(min=1), metavar="D",
              help="Dimension of the manifold.")  # fmt: skip
@click.option("--size", type=click.IntRange(min=1), metavar="PIXELS",
              help="Side of the images after cropping and resizing.  [default: 32]")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True),
              help="Time of training: scales the steps of all phases.")  # fmt: skip
@click.option("--name", help="Name of the run.  [default: date and method]")
@click.option("--seed", type=int, help="Seed of the training.  [default: 0]")
@click.option("--device", help="auto, cpu, cuda or cuda:<n>.  [default: auto]")
@click.option("--set", "settings", multiple=True, callback=_settings, metavar="SETTING=VALUE",
              help="Any other setting, such as stage_1.flow.width=128; repeatable.")  # fmt: skip
def train(
    data: str, method: str | None, dim: int | None, size: int | None, minutes: float | None,
    name: str | None, seed: int | None, device: str | None, settings: dict[str, Any],
) -> None:  # fmt: skip
    """Train a model on DATA: a folder or zip of images, or a dataset such as fashion_mnist.

    Writes the model and its report below data/ in the current folder. An interrupted command
    continues when it is repeated.
    """
    project = project_folder()
    configure(project)
    with _option_names():
        tables = _loader(project, {}).tables
        chosen = {"method": method, "name": name, "seed": seed, "device": device}
        params = {key: value for key, value in chosen.items() if value is not None}
        params = merge(params, _data_settings(data, tables["datasets"]))
        if size is not None:
            params = merge(params, {"data": {"size": size}})
        if dim is not None:
            params = merge(params, _dim_settings(dim, params, tables))
        params = _merge_settings(params, settings)
        request = None
        if minutes is not None:
            request = {**params, "minutes": minutes}
            params = merge(params, _steps_within(minutes, params, request, project))
        loader = _loader(project, params)
        record = loader.record()
        if record.state(project) != "finished":
            click.echo(f"Run {record.name}. If it is interrupted, the same command continues it.")
        _run(loader, project, {**params, "name": record.name}, request)
    _echo_result(record, project, data)


def _loader(project: Path, params: Mapping[str, Any]) -> "ExperimentConfigLoader":
    from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader

    conf = str(conf_source(project))
    return ExperimentConfigLoader(conf, runtime_params=dict(params), **LOADER_ARGS)


def _run(
    loader: "ExperimentConfigLoader",
    project: Path,
    params: dict[str, Any],
    request: dict[str, Any] | None,
) -> None:
    from kedro.framework.session import KedroSession

    from submanifold.config.loader import current_request

    conf = str(conf_source(project))
    token = current_request.set(request)
    try:
        with KedroSession.create(project, runtime_params=params, conf_source=conf) as session:
            session.run(  # type: ignore[call-arg]
                pipeline_names=[loader.experiment.pipeline], only_missing_outputs=True
            )
    finally:
        current_request.reset(token)


@contextmanager
def _option_names() -> Iterator[None]:
    """Name settings in messages as this command takes them."""
    try:
        yield
    except (UserError, click.ClickException) as error:
        message = error.message if isinstance(error, click.ClickException) else str(error)
        raise UserError(message.replace("--params=", "--set ")) from error


def _data_settings(data: str, datasets: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(data).expanduser()
    if path.exists():
        return {"dataset": "folder", "data": {"path": str(path.resolve())}}
    if data in datasets:
        return {"dataset": data}
    close = difflib.get_close_matches(data, datasets, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(
        f"DATA: expected an existing folder or zip of images, or one of the datasets "
        f"{', '.join(datasets)}, got {printable(data)}.{hint}"
    )


def _dim_settings(dim: int, params: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Set the dimension of the last stage that has one, and of stages that keep it."""
    dataset = entry(tables["datasets"], params["dataset"], "dataset")
    method = entry(tables["methods"], params.get("method", dataset["method"]), "method")
    dims = {name: {**method[name], **dataset.get(name, {})}.get("dim")
            for name in method if name.startswith("stage_")}  # fmt: skip
    last = [each for each in dims.values() if each is not None][-1:]
    if not last:
        raise UserError(
            f"--dim: expected none with method={method['name']}, whose density is on all of space, "
            f"got {dim}. Omit it, or choose another --method, such as density-first."
        )
    return {name: {"dim": dim} for name, each in dims.items() if each == last[0]}


def _merge_settings(params: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Merge the settings of ``--set``; refuse those that another option has set."""
    from submanifold.config.schema import flatten

    if twice := flatten(params).keys() & flatten(settings).keys():
        raise UserError(f"--set {min(twice)}: expected one value, but another option sets it.")
    return merge(params, settings)


def _steps_within(
    minutes: float, params: dict[str, Any], request: dict[str, Any], project: Path
) -> dict[str, Any]:
    """Return the steps that fit a time: those of an equal request, or measured ones."""
    from submanifold.training.cost import fit_budget

    same = [each.params for each in read_records(project) if each.request == request]
    experiment = _loader(project, params).experiment
    phases = experiment.phases
    if same:
        return {name: same[-1][name] for name in phases}
    if given := [name for name in phases
                 if "steps" in params.get(name, {}).get("training", {})
                 or "probes" in params.get(name, {})]:  # fmt: skip
        raise UserError(
            f"--minutes: expected no steps with it, got those of {', '.join(given)}. Omit either."
        )
    shape = experiment.data.event_shape
    found = fit_budget(60 * minutes, experiment.model, phases, shape, experiment.device)
    log.info("Training takes about %g minutes", minutes)
    return {name: merge(params.get(name, {}), found[name]) for name in phases}


def _echo_result(record: RunRecord, project: Path, data: str) -> None:
    from submanifold.models import Model

    model = project / record.model
    images = printable(data) if Path(data).expanduser().exists() else "PICTURES"
    commands = _commands(Model.load(model), record.name, images)
    click.echo(
        "\n".join(
            [
                f"\nReport: {project / record.report}",
                f"Model:  {model}",
                "\nUse the model:",
                *(f"  submanifold {command}" for command in commands),
            ]
        )
    )


def _commands(model: "Model", name: str, images: str) -> list[str]:
    """Return the commands that apply a model, with options that work for it."""
    from submanifold.evaluation.calibration import Calibration

    if "size" not in model.data:
        return [f"info {name}", f"sample {name} -n 1000 --out=samples.npz"]
    first = f"encode {name} {images}"
    if "groups" in model.calibration:
        least = Calibration.from_dict(model.calibration).smallest_p_value
        first = f"score {name} {images} --alpha={max(USUAL_ALPHA, math.ceil(100 * least))}%"
    return [first, f"project {name} {images} --nearest", f"sample {name} -n 64"]


@click.command()
@click.argument("name", required=False)
def runs(name: str | None) -> None:
    """List the runs of this folder with their figures, or show the files of the run NAME."""
    project = project_folder()
    if name is not None:
        record = find_record(project, name)
        lines = {
            "state": record.state(project),
            "dataset": record.dataset,
            "method": record.method,
            "started": record.started,
            "model": project / record.model,
            "metrics": project / record.metrics,
            "report": project / record.report,
        }
        click.echo("\n".join(f"{label:8} {value}" for label, value in lines.items()))
        return
    records = read_records(project)
    if not records:
        click.echo("No runs in this folder. `submanifold train pictures/` starts one.")
        return
    import pandas as pd

    table = pd.DataFrame([_row(each, project) for each in records]).fillna("")
    click.echo(table.to_markdown(index=False, tablefmt="simple", disable_numparse=True))


def _row(record: RunRecord, project: Path) -> dict[str, str]:
    from submanifold.evaluation.metrics import METRICS

    metrics = read_json(project / record.metrics) or {}
    row = {
        "name": record.name,
        "state": record.state(project),
        "started": record.started.replace("T", " "),
        "dataset": record.dataset,
        "method": record.method,
        "d": str((metrics.get("dims") or [""])[-1]),
    }
    for metric in map(METRICS.__getitem__, FIGURES):
        found = metric.read(metrics)
        value = found.get("value") if isinstance(found, Mapping) else found
        if value is not None:
            row[metric.label] = metric.write(value)
    return row


COMMANDS = [train, runs]
