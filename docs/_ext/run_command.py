"""The command ``run``, which ``submanifold`` loads when it is used, for the page of commands."""

import click

from submanifold.cli import cli

run = cli.get_command(click.Context(cli), "run")
