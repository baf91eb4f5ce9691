"""The project's own commands: ``reproduce``, ``sweep`` and ``join``, and Kedro's ``run``."""

import copy
import os
import traceback
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from click.core import ParameterSource
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import _split_params, env_option
from kedro.utils import find_kedro_project

if TYPE_CHECKING:
    import pandas as pd

BUSY = 0.3
CHOSEN = ("from_inputs", "from_nodes", "node_names", "tags", "namespaces")
"""Options of ``kedro run`` that name nodes to run: these run also where their outputs exist."""


@click.group(name="submanifold")
def cli() -> None:
    """Run a pipeline, reproduce the paper, and sweep parameters."""


@wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(pipeline: str | None, pipelines: list[str], **options: Any) -> Any:
    _check_parameters(options)  # before MLflow and much of Kedro are loaded
    from submanifold.pipeline_registry import NAMES

    named = [pipeline] if pipeline else pipelines
    for name in named:
        if name not in (*NAMES, "__default__"):
            raise click.ClickException(
                f"pipeline={name} is not known. Known: {', '.join(NAMES)}. Change it with "
                "--pipeline=<name>."
            )
    if not {*named} & {"compare", "sweep", "study"} and not any(options[name] for name in CHOSEN):
        options["only_missing_outputs"] = True  # paths carry a key of all settings
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
    from submanifold.config.loader import ExperimentConfigLoader
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
@click.option(
    "--time",
    "timed",
    is_flag=True,
    help="With --dry-run: time some steps of trainings without a recorded time.",
)
@click.option("--finished-only", is_flag=True, help="Run nothing: leave out what is not finished.")
@params_option
def reproduce(
    targets: tuple[str, ...],
    env: str | None,
    seeds: int,
    dry_run: bool,
    timed: bool,
    finished_only: bool,
    params: dict[str, Any],
) -> None:
    """Make tables and figures of the paper: table-1 ... table-5, figure-1 ... figure-10, findings.

    Runs what is missing, reuses what is there, and writes each TARGET beside the paper's figures
    to data/08_reporting/paper/. Killed at any moment and called again, it goes on where it was.
    """
    from submanifold.common.errors import UserError
    from submanifold.config import flatten
    from submanifold.studies import reproduce as studies

    if timed and not dry_run:
        raise click.UsageError("--time: expected --dry-run with it. Add --dry-run.")
    project = _project()
    try:
        planned = studies.plan(targets, project, env, seeds, flatten(params))
        if finished_only:
            planned = studies.finished(planned, project)
            if not planned:
                raise UserError(f"Nothing that {', '.join(targets)} needs is finished.")
        if dry_run:
            table = studies.state(planned, timed)
            hours = table["hours"].map("{:.2f}".format).replace("nan", "unknown")
            shown = table[["experiment", "state"]].assign(hours=hours)
            click.echo(shown.to_markdown(index=False, tablefmt="plain", disable_numparse=True))
            click.echo(_hours_left(table, timed))
            return
        for page in studies.reproduce(planned, project, env):
            click.echo(page)
    except UserError as error:
        raise click.ClickException(str(error)) from error


def _hours_left(table: "pd.DataFrame", timed: bool) -> str:
    """Sum up the column of hours, and state where they come from."""
    hours, unknown = table["hours"].sum(), table["unknown"].sum()
    source = "from the recorded time of such trainings"
    if timed:
        busy = os.getloadavg()[0] / (os.cpu_count() or 1)
        source += " and from a few steps timed now"
        source += f" at a processor load of {busy:.0%}" if busy > BUSY else ""
    text = f"{hours:.1f} hours of training are left on this machine, {source}."
    if unknown:
        text += f" {unknown} trainings have no recorded time: add --time to time them."
    return text


def _read(texts: tuple[str, ...]) -> list[Any]:
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


OF_STUDIES = ("trials", "workers", "sampler", "prune")


@cli.command()
@click.argument("parameter")
@click.argument("values", nargs=-1)
@env_option
@params_option
@click.option("--study", help="Search several parameters, under this name.")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True,
              help="How many the study is to have, with those it has.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes that make trials at once and share the threads.")  # fmt: skip
@click.option("--sampler", type=click.Choice(["tpe", "nsga2", "random"]), default="tpe",
              show_default=True, help="How Optuna chooses; nsga2 takes hundreds.")  # fmt: skip
@click.option("--prune/--no-prune", default=True, show_default=True,
              help="End trainings of which half of the others were ahead.")  # fmt: skip
@click.pass_context
def sweep(
    ctx: click.Context,
    parameter: str,
    values: tuple[str, ...],
    env: str | None,
    params: dict[str, Any],
    study: str | None,
    **how: Any,
) -> None:
    """Run an experiment once for each of the VALUES of a PARAMETER, such as stage_1.dim.

    Each is a run of MLflow's with the same tag, submanifold.sweep. They end in a table and an
    interactive plot of bits per dimension and squared error, in data/08_reporting/sweeps/.

    With --study each argument is a parameter and what it may be, and Optuna searches them together
    for few bits and a small error of validation data:

    \b
      kedro sweep --study=first --trials=20 --workers=2
        stage_1.dim=50..500                             whole numbers
        phase_1.reconstruction.weight=log:1.0..1000     any numbers, on a logarithmic scale
        method=PR-D,EE-M                                one of these

    The same command in another terminal joins, and given again it goes on where it was.
    """  # noqa: D301  click's mark of lines that stay as they are
    from submanifold.common.errors import UserError

    given = [name for name in OF_STUDIES
             if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]  # fmt: skip
    try:
        if study is not None:
            from submanifold.studies.search import search

            click.echo(search(study, (parameter, *values), params, _project(), env, **how))
            return
        if "=" in parameter or given:
            what = f"--{given[0]}" if given else parameter
            raise UserError(f"{what} is of a study. Give it a name with --study=<name>.")
        if not values:
            raise click.UsageError("Missing argument 'VALUES...'.")
        from submanifold.studies.search.sweep import sweep as run_sweep

        click.echo(run_sweep(parameter, _read(values), params, _project(), env))
    except UserError as error:
        raise click.ClickException(str(error)) from error


@cli.command()
@click.argument("address")
def join(address: str) -> None:
    """Compute for a run on another machine, whose launch.address is ADDRESS, until it has ended.

    Both need the project and its data in the same place of a file system that they share, and as
    many GPUs as launch.processes says. There are launch.machines less one to join.
    """
    from submanifold.common.errors import UserError
    from submanifold.runs.launch import join as join_run

    project = _project()
    try:
        join_run(address, project)
    except UserError as error:
        raise click.ClickException(str(error)) from error


def _project() -> Path:
    from kedro.framework.startup import bootstrap_project

    project = find_kedro_project(Path.cwd())
    if project is None:
        raise click.ClickException("This is no folder of a Kedro project. Change into one.")
    bootstrap_project(Path(project))
    return Path(project)
