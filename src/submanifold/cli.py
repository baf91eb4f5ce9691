"""The project's own commands: ``reproduce``, ``sweep`` and ``join``, and Kedro's ``run``."""

import copy
import os
import traceback
from functools import wraps
from pathlib import Path
from typing import Any

import click
import yaml
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import _split_params, env_option
from kedro.utils import find_kedro_project

BUSY = 0.3


@click.group(name="submanifold")
def cli() -> None:
    """Run a pipeline, reproduce the paper, and sweep a parameter."""


@wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(pipeline: str | None, pipelines: list[str], **options: Any) -> Any:
    _check_parameters(options)  # before MLflow and much of Kedro are loaded
    from submanifold.pipeline_registry import register_pipelines

    # all there are, also those that the dataset in conf/ has not, for --params may choose another
    known = [name for name in register_pipelines([(1,)]) if name != "__default__"]
    for name in [pipeline] if pipeline else pipelines:
        if name not in (*known, "__default__"):
            raise click.ClickException(
                f"pipeline={name} is not known. Known: {', '.join(known)}. Change it with "
                "--pipeline=<name>."
            )
    try:
        return kedro_run.callback(pipeline=pipeline, pipelines=pipelines, **options)  # type: ignore[misc]
    except ValueError as error:
        last = list(traceback.walk_tb(error.__traceback__))[-1][0]
        if last.f_globals["__name__"].startswith("kedro.pipeline."):
            raise click.ClickException(
                f"{str(error).rstrip('.')}. Change --nodes, --namespaces, --from-nodes, "
                "--to-nodes, --to-outputs or --tags; `kedro registry describe <pipeline>` names "
                "what there is."
            ) from error
        raise


def _check_parameters(options: dict[str, Any]) -> None:
    from submanifold.config import ExperimentConfigLoader
    from submanifold.settings import CONFIG_LOADER_ARGS

    project = find_kedro_project(Path.cwd())
    place = options["conf_source"] or (project and str(project / "conf"))
    if place is None or not Path(place).is_dir():  # an archive of Kedro's, or nothing it can use
        return
    env = options["env"] or os.environ.get("KEDRO_ENV")
    given = copy.deepcopy(options["params"])
    ExperimentConfigLoader(place, env=env, runtime_params=given, **CONFIG_LOADER_ARGS)["parameters"]


run = copy.copy(kedro_run)
run.callback = _run
cli.add_command(run)

params_option = click.option(
    "--params", type=str, default="", callback=_split_params, help="As in kedro run."
)


@cli.command()
@click.argument("targets", nargs=-1, required=True)
@env_option
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True,
              help="Trainings of each cell of a table, each from another seed.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List the runs, what is cached, and the time.")
@click.option("--finished-only", is_flag=True, help="Run nothing: leave out what is not finished.")
@params_option
def reproduce(
    targets: tuple[str, ...],
    env: str | None,
    seeds: int,
    dry_run: bool,
    finished_only: bool,
    params: dict[str, Any],
) -> None:
    """Make tables and figures of the paper: table-1 ... table-5, figure-1 ... figure-10, findings.

    Runs what is missing, reuses what is there, and writes each TARGET beside the paper's figures
    to data/08_reporting/paper/. Killed at any moment and called again, it goes on where it was.
    """
    from submanifold.errors import UserError
    from submanifold.experiment import flatten
    from submanifold.reproduction import write

    project = _project()
    try:
        planned = write.plan(targets, project, env, seeds, flatten(params))
        if finished_only:
            planned = write.finished(planned)
            if not planned:
                raise UserError(f"Nothing that {', '.join(targets)} needs is finished.")
        if dry_run:
            table = write.state(planned)
            shown = table[["experiment", "state", "hours"]]
            click.echo(shown.to_markdown(index=False, tablefmt="plain", floatfmt=".2f"))
            left = f"{table['hours'].sum():.1f} hours of training are left on this machine"
            timed, busy = table["timed"].any(), os.getloadavg()[0] / (os.cpu_count() or 1)
            click.echo(
                f"{left}, by what such trainings took before."
                if not timed
                else f"{left}, by a few steps timed now, while {busy:.0%} of its processors were "
                "busy with other work: an idle machine is faster."
                if busy > BUSY
                else f"{left}, by a few steps timed now."
            )
            return
        for page in write.reproduce(planned, project, env):
            click.echo(page)
    except UserError as error:
        raise click.ClickException(str(error)) from error


def _read(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[Any]:
    """Read values as a parameter in a YAML file is read."""
    values = []
    for text in texts:
        try:
            values.append(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise click.BadParameter(f"{text!r} cannot be read as YAML.") from error
        if isinstance(values[-1], dict):
            raise click.BadParameter(f"{text!r} is not one value: sweep one of its settings.")
    return values


@cli.command()
@click.argument("parameter")
@click.argument("values", nargs=-1, required=True, callback=_read)
@env_option
@params_option
def sweep(parameter: str, values: list[Any], env: str | None, params: dict[str, Any]) -> None:
    """Run an experiment once for each of the VALUES of a PARAMETER, such as stage_1.dim.

    Each is a run of MLflow's with the same tag, submanifold.sweep. They end in a table and an
    interactive plot of bits per dimension and squared error, in data/08_reporting/sweeps/.
    """
    from submanifold.errors import UserError
    from submanifold.reproduction.sweeps import sweep as run_sweep

    try:
        click.echo(run_sweep(parameter, values, params, _project(), env))
    except UserError as error:
        raise click.ClickException(str(error)) from error


@cli.command()
@click.argument("address")
def join(address: str) -> None:
    """Compute for a run on another machine, whose launch.address is ADDRESS, until it has ended.

    Both need the project and its data in the same place of a file system that they share, and as
    many GPUs as launch.processes says. There are launch.machines less one to join.
    """
    from submanifold.errors import UserError
    from submanifold.pipelines.launch import join as join_run

    _project()
    try:
        join_run(address)
    except UserError as error:
        raise click.ClickException(str(error)) from error


def _project() -> Path:
    from kedro.framework.startup import bootstrap_project

    project = find_kedro_project(Path.cwd())
    if project is None:
        raise click.ClickException("This is no folder of a Kedro project. Change into one.")
    bootstrap_project(Path(project))
    return Path(project)
