"""Run the project as a package: ``python -m submanifold run --pipelines=hierarchical``."""

import sys

import click
from kedro.framework.project import configure_project

from submanifold.cli import cli

HELP = ["-h", "--help"]


def main() -> None:
    """Hand the command line to Kedro's run or to the project's commands; without one, to run."""
    configure_project("submanifold")
    commands = click.Group(
        commands=list(cli.commands.values()),
        help="Run a pipeline, reproduce the paper, or sweep a parameter.",
        context_settings={"help_option_names": HELP},
    )
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in HELP):
        arguments = ["run", *arguments]
    commands(arguments, prog_name="python -m submanifold")


if __name__ == "__main__":
    main()
