"""Commands of the program, run in this process."""

from click.testing import CliRunner

from submanifold.cli import cli
from submanifold.common import threads


def run(*arguments):
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert threads._setting is None
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output
