"""The command ``run``, which ``submanifold`` loads when it is used, for the page of commands."""

from submanifold.cli import run_command

run = run_command()
