"""``python -m submanifold``: Kedro's run command and the project's own, side by side."""

import subprocess
import sys

import pytest
from kedro.framework.cli.project import run

from submanifold import __main__, cli


def test_help_lists_all_commands():
    command = [sys.executable, "-m", "submanifold", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "Usage: python -m submanifold" in shown
    for name in ("run", "reproduce", "sweep"):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize(
    ("arguments", "name", "option", "value"),
    [
        ([], "run", "pipeline", None),
        (["--pipelines=joint"], "run", "pipelines", ["joint"]),
        (["run", "--pipelines=joint"], "run", "pipelines", ["joint"]),
        (["--params=seed=3"], "run", "params", {"seed": 3}),
        (["reproduce", "table-1", "--dry-run"], "reproduce", "dry_run", True),
        (["sweep", "seed", "1", "2"], "sweep", "parameter", "seed"),
    ],
)
def test_a_command_line_without_a_command_is_a_run(arguments, name, option, value, monkeypatch):
    given = {}
    for command in (run, *cli.cli.commands.values()):

        def note(called=command.name, **options):
            given[called] = options

        monkeypatch.setattr(command, "callback", note)
    monkeypatch.setattr(sys, "argv", ["submanifold", *arguments])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 0
    assert given.keys() == {name}
    assert given[name].get(option) == value
