"""The command line: ``submanifold``, ``python -m submanifold``, and the same commands in Kedro.

torch, MLflow and Kedro are imported by the commands that use them.
"""

import copy
import logging
import os
import re
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from click.core import ParameterSource

from submanifold.common.errors import UserError, did_you_mean
from submanifold.common.extras import import_extra
from submanifold.common.files import printable
from submanifold.config.project import conf_source, configure, project_folder, set_kedro_defaults
from submanifold.inference.command import COMMANDS as MODEL_COMMANDS
from submanifold.runs.command import COMMANDS as RUN_COMMANDS

if TYPE_CHECKING:
    import pandas as pd

NODE_OPTIONS = ("from_inputs", "from_nodes", "node_names", "tags", "namespaces")
"""Options of ``kedro run`` that select nodes: these run even if their outputs exist."""
STUDY_OPTIONS = ("trials", "workers", "sampler", "prune")
HIGH_LOAD = 0.3  # of the processors
JOINT_METHOD = "EE-M"
"""Default of ``--pipeline=joint``: the method with the lowest error (docs/evidence/beyond.md)."""


class _Run(click.Command):
    """Kedro's ``run``, which is imported when it is used."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Create the context of the imported command, with its options."""
        return run_command().make_context(*args, **kwargs)


RUN = _Run("run", help="Run the pipeline.")


class _Group(click.Group):
    """Prints errors of users as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # such as "submanifold info | head"; click exits silently
            raise
        except click.UsageError as error:
            message = printable(error.format_message())
            name = error.ctx.command.name if error.ctx else None
            if name == "train" and re.search(r"extra argument.*=", message):
                message += ". Settings need an option: --set <setting>=<value>."
            raise click.UsageError(message, error.ctx) from error
        except (UserError, OSError) as error:
            raise click.ClickException(printable(str(error))) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), "run"])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command by name."""
        return RUN if name == "run" else super().get_command(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is reported with the closest name."""
        known = self.list_commands(ctx)
        if args[0] not in known and (hint := did_you_mean(args[0], known)):
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, name="submanifold",
             context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip
@click.version_option(package_name="submanifold", message="%(prog)s %(version)s")
def cli() -> None:
    """Train models, apply them to images and tables, and reproduce the paper.

    MODEL is the name of a run, its hierarchy.safetensors file, or the file's folder. INPUTS of a
    model of images are image files, folders (searched recursively), and zips. Images are cropped
    and resized like the training images; unreadable ones are skipped with a warning. INPUTS of a
    model of a table are CSV, Parquet, Feather, NPY or NPZ files; columns are found by name.

    Runs write below data/. The other commands write to --out, by default in the current folder.

    \b
      submanifold train pictures/ --name=holiday     train a model on a folder of images
      submanifold runs                               list the runs and their figures
      submanifold score holiday new.jpg --alpha=5%   find out-of-distribution images
    """  # noqa: D301  \b keeps the lines


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cli(prog_name="submanifold")


def _print_user_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Print a user's mistake without a traceback, also where Kedro calls the command."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise click.ClickException(printable(str(error))) from error

    return call


def run_command() -> click.Command:
    """Return Kedro's ``run``, which checks the parameters first and skips existing outputs."""
    set_kedro_defaults()
    from kedro.framework.cli.project import run as kedro_run

    def run(pipeline: str | None, pipelines: list[str], **options: Any) -> Any:
        if "ParallelRunner" in (options["runner"] or ""):  # datasets refuse other processes
            raise click.ClickException(
                "--runner: expected SequentialRunner or ThreadRunner, got ParallelRunner. Leave it "
                "out."
            )
        configure(project_folder())
        names = [pipeline] if pipeline else pipelines
        options["conf_source"] = options["conf_source"] or str(conf_source(project_folder()))
        check_parameters(options, joint=names == ["joint"])  # before MLflow is imported
        from submanifold.pipeline_registry import NAMES

        if unknown := [name for name in names if name not in (*NAMES, "__default__")]:
            raise click.ClickException(
                f"pipeline={unknown[0]} is not known. Known: {', '.join(NAMES)}."
                f"{did_you_mean(unknown[0], NAMES)} Change it with --pipeline=<name>."
            )
        summarizes = {*names} & {"compare", "sweep", "study"}
        if not summarizes and not any(options[name] for name in NODE_OPTIONS):
            options["only_missing_outputs"] = True  # paths contain a key of all settings
        try:
            return kedro_run.callback(pipeline=pipeline, pipelines=pipelines, **options)  # type: ignore[misc]
        except ValueError as error:
            last = list(traceback.walk_tb(error.__traceback__))[-1][0]
            if not last.f_globals["__name__"].startswith("kedro.pipeline."):
                raise
            raise click.ClickException(
                f"{str(error).rstrip('.')}. Change --nodes, --namespaces, --from-nodes, "
                "--to-nodes, --to-outputs or --tags; `kedro registry describe <pipeline>` lists "
                "the nodes."
            ) from error

    command = copy.copy(kedro_run)
    command.callback = run
    return command


def check_parameters(options: dict[str, Any], joint: bool = False) -> None:
    """Check the parameters of ``kedro run``.

    Args:
        options: The command's options. With ``joint`` and no method, it gets the default one.
        joint: Whether only the pipeline ``joint`` runs, which a dataset's default method may not
            fit.

    Raises:
        ClickException: A parameter is invalid.
    """
    from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader

    conf = options["conf_source"]
    if not Path(conf).is_dir():  # an archive, or an error that Kedro reports
        return
    env = options["env"] or os.environ.get("KEDRO_ENV")
    params = copy.deepcopy(options["params"])
    loader = ExperimentConfigLoader(conf, env=env, runtime_params=params, **LOADER_ARGS)
    loader["parameters"]
    if joint and loader.experiment.pipeline != "joint" and loader.uses_default_method:
        options["params"]["method"] = JOINT_METHOD
        logging.getLogger(__name__).info("method=%s, the default with joint", JOINT_METHOD)


def _split_params(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    set_kedro_defaults()  # before Kedro is imported, which configures its logging then
    from kedro.framework.cli.utils import _split_params as split

    return split(ctx, param, value)


env_option = click.option(
    "--env", "-e", envvar="KEDRO_ENV", help="Kedro's environment, as in kedro run."
)
params_option = click.option(
    "--params", type=str, default="", callback=_split_params, help="As in kedro run."
)


@cli.command()
@click.argument("targets", nargs=-1, required=True)
@env_option
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True,
              help="Trainings with different seeds for each cell of a table.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List the runs, their state and the time left.")
@click.option("--time", "timed", is_flag=True,
              help="With --dry-run: measure the time of a few steps of new trainings.")  # fmt: skip
@click.option("--finished-only", is_flag=True, help="Run nothing, and omit unfinished runs.")
@params_option
def reproduce(
    targets: tuple[str, ...], env: str | None, seeds: int, dry_run: bool, timed: bool,
    finished_only: bool, params: dict[str, Any],
) -> None:  # fmt: skip
    """Reproduce the paper: table-1 ... table-5, figures, findings, or all of it (paper).

    Other TARGETS are the comparisons beyond, related and ood; "all" is every target.

    Runs what is missing, and writes each TARGET next to the paper's values to
    data/08_reporting/paper/. An interrupted command continues when it is repeated.
    """
    if timed and not dry_run:
        raise click.UsageError("--time: expected --dry-run with it. Add --dry-run.")
    from submanifold.config.schema import flatten
    from submanifold.studies import reproduce as studies

    project = _project()
    planned = studies.plan(targets, project, env, seeds, flatten(params))
    if finished_only:
        planned = studies.finished(planned, project)
        if not planned:
            raise UserError(f"Nothing that {', '.join(targets)} needs is finished.")
    if dry_run:
        table = studies.state(planned, timed)
        hours = table["hours"].map("{:.2f}".format).replace("nan", "unknown")
        errors = [text for text in table["state"].unique() if text not in studies.STATES]
        numbered = {text: f"error {number}" for number, text in enumerate(errors, start=1)}
        states = table["state"].replace(numbered)
        shown = table[["experiment"]].assign(state=states, hours=hours)
        click.echo(shown.to_markdown(index=False, tablefmt="plain", disable_numparse=True))
        for text, name in numbered.items():
            click.echo(f"{name}: {text}")
        if (table["state"] == studies.DOWNLOAD).any():
            click.echo(f"{studies.DOWNLOAD}: its images are not at data.path or in data/01_raw.")
        click.echo(_time_left(table, timed))
        return
    for page in studies.reproduce(planned, project, env):
        click.echo(page)


def _time_left(table: "pd.DataFrame", timed: bool) -> str:
    hours, unknown = table["hours"].sum(), table["unknown"].sum()
    source = "from the recorded time of such trainings"
    if timed:
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        source += " and from a few steps timed now"
        source += f" at a processor load of {load:.0%}" if load > HIGH_LOAD else ""
    text = f"{hours:.1f} hours of training are left on this machine, {source}."
    if unknown and not hours:
        return f"{unknown} trainings have no recorded time: add --time to time a few steps of each."
    if unknown:
        text += f" {unknown} trainings have no recorded time: add --time to time them."
    return text


@cli.command()
@click.argument("parameter")
@click.argument("values", nargs=-1)
@env_option
@params_option
@click.option("--study", help="Search several parameters, under this name.")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True,
              help="Number of trials of the study, including finished ones.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes that run trials in parallel and share the threads.")  # fmt: skip
@click.option("--sampler", type=click.Choice(["tpe", "nsga2", "random"]), default="tpe",
              show_default=True,
              help="Optuna's sampler; nsga2 needs hundreds of trials.")  # fmt: skip
@click.option("--prune/--no-prune", default=True, show_default=True,
              help="End trainings that are worse than the median.")  # fmt: skip
@click.pass_context
def sweep(
    ctx: click.Context, parameter: str, values: tuple[str, ...], env: str | None,
    params: dict[str, Any], study: str | None, **options: Any,
) -> None:  # fmt: skip
    """Run an experiment for each of the VALUES of a PARAMETER, such as stage_1.dim.

    Writes a page with a table and an interactive plot of bits per dimension and squared error to
    data/08_reporting/sweeps/. The MLflow runs have the tag submanifold.sweep.

    With --study each argument is a parameter and its range, and Optuna searches all of them for few
    bits and a small error on the validation data:

    \b
      kedro sweep --study=first --trials=20 --workers=2
        stage_1.dim=50..500                              integers
        stage_1.reconstruction.weight=log:1.0..1000      numbers on a logarithmic scale
        method=PR-D,EE-M                                 choices

    The same command in another terminal joins the study; repeated later, it continues.
    """  # noqa: D301  \b keeps the lines
    if study is not None:
        import_extra("optuna", "search")
        from submanifold.studies.search.workers import search

        click.echo(search(study, (parameter, *values), params, _project(), env, **options))
        return
    given = [f"--{name}" for name in STUDY_OPTIONS
             if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]  # fmt: skip
    if given or "=" in parameter:
        raise UserError(f"{(given or [parameter])[0]} needs a study. Name it: --study=<name>.")
    if not values:
        raise click.UsageError("Missing argument 'VALUES...'.")
    from submanifold.studies.search.sweep import sweep as run_sweep

    click.echo(run_sweep(parameter, _parse_yaml(values), params, _project(), env))


def _parse_yaml(texts: tuple[str, ...]) -> list[Any]:
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
@click.argument("address")
def join(address: str) -> None:
    """Compute for a run on another machine until it ends; ADDRESS is its launch.address.

    Run it on launch.machines - 1 machines, each with launch.processes GPUs if GPUs are used. All
    machines need the project and its data at the same path of a shared file system.
    """
    from submanifold.runs.launch import join as join_run

    project = _project()
    if not (project / "data").is_dir():
        raise UserError(f"join: expected the folder of the run, which has data/, got {project}.")
    join_run(address, project)


def _project() -> Path:
    project = project_folder()
    configure(project)
    return project


for _command in (*MODEL_COMMANDS, *RUN_COMMANDS):
    cli.add_command(_command)
for _command in cli.commands.values():
    if _command.callback is not None:
        _command.callback = _print_user_errors(_command.callback)
