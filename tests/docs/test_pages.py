"""Pages name what exists, and explain every metric. Sphinx checks the links between the pages."""

import os
import re
import shlex
from pathlib import Path

import click
import pytest
from kedro.framework.cli.cli import KedroCLI

from submanifold.cli import cli, run_command
from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.metrics import METRICS
from submanifold.evaluation.ood import LINEAR, LINEAR_COMBINATION
from submanifold.evaluation.scores import SCORES

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
PAGE = re.compile(r"\bdocs/[\w./-]+\.(?:md|ipynb|png|py)\b")
CODE = re.compile(r"(?<![\w./-])(?:(?:src|tests|benchmarks)/[\w./-]*\w|(?:\w+/)+\w+\.py\b)")
COMMAND = re.compile(
    r"^ {4,}(?:.*[ /])?((?:submanifold|kedro) (?:[^\n\\]|\\\n)*)"
    r"|`(?:[^`\n]*[ /])?((?:submanifold|kedro) [^`<\n]+)`",
    re.MULTILINE,
)
OPTION = re.compile(r"`(--[a-z][\w-]*)(?:=([^`\n]*))?`")
"""An option that stands alone."""
OF_OTHERS = {
    "--allowed-hosts",
    "--backend-store-uri",
    "--volume",
    "--count",
    "--settings",
    "--steps",
}
"""Options of MLflow, Docker and benchmarks."""
OF_PLUGINS = {"airflow", "mlflow"}
"""Commands of Kedro's plugins that are not installed."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
EXAMPLES = {
    "flows/sinh_arcsinh.py",
    "flows/interleaved.py",
    "losses/sparsity.py",
    "data/sources/array.py",
}
"""Files that readers of docs/how-to/extend.md write."""


def missing(files, pattern, *folders):
    """(file, path) of the paths that match a pattern and are in none of the folders."""
    named = {(file.name, path) for file in files for path in pattern.findall(file.read_text())}
    return {each for each in named if not any((folder / each[1]).exists() for folder in folders)}


def test_links_of_root_pages():
    assert missing(ROOT.glob("*.md"), LINK, ROOT) == set()


def test_pages_that_code_and_configuration_name():
    files = [
        ROOT / "pyproject.toml",
        *ROOT.glob("conf/base/*.yml"),
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("src/**/*.html"),
        *ROOT.glob("benchmarks/**/*.py"),
    ]
    assert missing(files, PAGE, ROOT) == set()


def test_code_that_pages_name():
    written = {("extend.md", path) for path in EXAMPLES}
    written.add(("add-a-node.md", "src/submanifold/pipelines/sharpness.py"))
    assert missing(PAGES, CODE, ROOT, ROOT / "src/submanifold") <= written


@pytest.mark.parametrize("name", [*METRICS, *SCORES, *LINEAR, COMBINATION, LINEAR_COMBINATION])
def test_the_page_of_metrics_explains_every_metric_and_score(name):
    assert f"`{name}`" in (ROOT / "docs/concepts/metrics.md").read_text()


def parse(command, name, *arguments):
    """Parse the arguments of a command and of its subcommands, which are not run."""
    if not isinstance(command, click.Group) or (arguments and arguments[0].startswith("-")):
        command.make_context(name, [*arguments])
    elif arguments and arguments[0] not in OF_PLUGINS:
        name, subcommand, rest = command.resolve_command(click.Context(command), [*arguments])
        parse(subcommand, name, *rest)


def test_commands_and_their_options_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARAMS", "seed=0")
    (tmp_path / "study.yml").touch()
    wrong, programs = {}, {"submanifold": cli, "kedro": KedroCLI(ROOT)}
    for page in PAGES:
        for line, part in COMMAND.findall(page.read_text()):
            text = (line or part).partition("  #")[0].replace("\\\n", " ")
            try:
                program, *arguments = shlex.split(os.path.expandvars(text))
                parse(programs[program], program, *arguments)
            except click.exceptions.Exit:  # of --version
                continue
            except click.UsageError as error:
                if line or not isinstance(error, click.MissingParameter):
                    wrong[f"{page.name}: {text}"] = error.message
    assert wrong == {}


def test_options_that_stand_alone_exist():
    commands = [*cli.commands.values(), run_command()]
    known = {option for command in commands for each in command.params for option in each.opts}
    named = {(page.name, *option) for page in PAGES for option in OPTION.findall(page.read_text())}
    assert {(page, name) for page, name, _ in named if name not in known | OF_OTHERS} == set()
    environments = {folder.name for folder in (ROOT / "conf").iterdir()}
    chosen = {(page, value) for page, name, value in named if name == "--env" and value.isalpha()}
    assert {(page, value) for page, value in chosen if value not in environments} == set()
