"""The command line: ``submanifold``, ``python -m submanifold``, and the same commands in Kedro.

torch, MLflow and Kedro are imported by the commands that use them.
"""

import copy
import logging
import os
import shlex
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from submanifold.common.errors import UserError, import_extra, list_names, printable
from submanifold.common.files import DISK
from submanifold.config.merge import format_params
from submanifold.config.project import conf_source, configure, project_folder, set_kedro_defaults
from submanifold.inference.commands.calibrate import calibrate
from submanifold.inference.commands.encode import encode
from submanifold.inference.commands.project import project
from submanifold.inference.commands.sample import sample
from submanifold.runs.command import COMMANDS as RUN_COMMANDS
from submanifold.runs.command import ParamsOption

NODE_OPTIONS = ("from_inputs", "from_nodes", "node_names", "tags", "namespaces")
"""Options of ``kedro run`` that select nodes: these run even if their outputs exist."""
RUNNER = "submanifold.runs.runner.RankRunner"


class _Run(click.Command):
    """Kedro's ``run``, which is imported when it is used."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Create the context of the imported command, with its options."""
        return run_command().make_context(*args, **kwargs)


class _Group(click.Group):
    """Prints errors of users as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (UserError, BrokenPipeError):  # the latter of "submanifold info | head"
            raise
        except click.UsageError as error:
            raise click.UsageError(printable(error.format_message()), error.ctx) from error
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise UserError(str(error)) from error


@click.group(
    cls=_Group, name="submanifold", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="submanifold", message="%(prog)s %(version)s")
def cli() -> None:
    """Train models, apply them to images and tables, and reproduce the paper.

    MODEL is the name of a run, its hierarchy.safetensors file, or the file's folder. INPUTS of a
    model of images are image files, folders (searched recursively), and zips. Images are cropped
    and resized like the training images; unreadable ones are skipped with a warning. INPUTS of a
    model of a table are CSV, Parquet, Feather, NPY or NPZ files; columns are found by name.

    Runs write below data/. The other commands write to --out, by default to a new file in the
    current folder: if scores.csv exists, to scores-2.csv.

    \b
      submanifold train pictures/ --name=holiday     train a model on a folder of images
      submanifold runs                               list the runs and their figures
      submanifold score holiday new.jpg --alpha=5%   find out-of-distribution images
    """  # noqa: D301  \b keeps the lines


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if int(os.environ.get("RANK", 0)) > 0:  # of torchrun: the first rank logs
        logging.disable(logging.WARNING)
    cli(prog_name="submanifold")


def run_command() -> click.Command:
    """Return Kedro's ``run``, which skips existing outputs."""
    set_kedro_defaults()
    from kedro.framework.cli.project import run as kedro_run

    def run(pipeline: str | None, pipelines: list[str], **options: Any) -> Any:
        if options["runner"] or options["is_async"]:
            expected = "the default, because phases need one another and MLflow one thread"
            raise UserError(f"--runner, --async: expected {expected}. Omit them.")
        options["runner"] = RUNNER
        options["conf_source"] = options["conf_source"] or str(conf_source(project_folder()))
        configure(project_folder())
        if not any(options[name] for name in NODE_OPTIONS):
            options["only_missing_outputs"] = True  # paths contain a key of all settings
        try:
            return kedro_run.callback(pipeline=pipeline, pipelines=pipelines, **options)  # type: ignore[misc]
        except KeyboardInterrupt:
            click.echo("Interrupted. The same command continues.", err=True)
            raise
        except ValueError as error:
            *_, (last, _) = traceback.walk_tb(error.__traceback__)
            if not last.f_globals["__name__"].startswith(("kedro.pipeline.", "kedro.framework.s")):
                raise
            from kedro.framework.project import pipelines as registered

            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"{reason}. The pipelines are {list_names(registered)}.") from error

    command = copy.copy(kedro_run)
    command.callback = run
    command.params = [
        ParamsOption(["--params"]) if option.name == "params" else option
        for option in kedro_run.params
    ]
    return command


env_help = "Kedro's environment, as in kedro run."
env_option = click.option("--env", "-e", envvar="KEDRO_ENV", help=env_help)


@cli.command()
@click.argument("targets", nargs=-1, required=True)
@env_option
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings with different seeds for each cell of a table.",
)
@click.option("--dry-run", is_flag=True, help="List missing input, the runs and their time.")
@click.option("--finished-only", is_flag=True, help="Run nothing, and omit unfinished runs.")
@click.option("--params", cls=ParamsOption)
def reproduce(
    targets: tuple[str, ...],
    env: str | None,
    seeds: int,
    dry_run: bool,
    finished_only: bool,
    params: dict[str, Any],
) -> None:
    """Reproduce the paper: table-1 ... table-5, figures, findings, or all of it (paper).

    Other TARGETS are the comparisons beyond, related and ood; "all" is every target.

    Runs what is missing, and writes each TARGET next to the paper's values to
    data/08_reporting/paper/. An interrupted command continues when it is repeated.
    """
    set_kedro_defaults()  # before Kedro is imported, which configures its logging then
    from submanifold.common.settings import flatten
    from submanifold.studies import reproduce as studies

    project = _project()
    changed = flatten(params)
    planned = studies.plan(targets, project, env, seeds, changed)
    if finished_only:
        planned = studies.finished(planned)
        if not planned:
            raise UserError(f"Nothing that {', '.join(targets)} needs is finished.")
    if dry_run:
        click.echo("\n".join(studies.overview(planned)))
        return
    options = f" --env={env}" if env else ""
    options += f" --seeds={seeds}" if seeds > 1 else ""
    if changed:
        options += f" --params={shlex.quote(format_params(changed))}"
    for page in studies.reproduce(planned, project, env, options):
        click.echo(page)


if find_spec("kedro_viz") is None:  # which has this command

    @cli.command(hidden=True, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1)
    def viz(arguments: tuple[str, ...]) -> None:
        """Show the pipelines in a browser."""
        import_extra("kedro_viz", "viz")


def _project() -> Path:
    project = project_folder()
    configure(project)
    return project


for _command in (
    _Run("run", help="Run the pipeline."),
    calibrate,
    encode,
    project,
    sample,
    *RUN_COMMANDS,
):
    cli.add_command(_command)
