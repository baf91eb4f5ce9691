"""The command line: its commands, and what it imports."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from conftest import command_environment

pytestmark = pytest.mark.pipeline

COMMANDS = {
    "compare",
    "encode",
    "info",
    "project",
    "reproduce",
    "run",
    "runs",
    "sample",
    "score",
    "train",
}


def run_python(script, cwd=None):
    command = [sys.executable, "-c", script]
    environment = command_environment()  # other tests select a database
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = ("torch", "mlflow", "matplotlib", "pandas", "scipy.special", "sklearn")


def script_of(module, *arguments):
    """Return a script that runs a command and prints the names in HEAVY that it has imported."""
    return f"""
import runpy, sys
sys.argv = {[module, *map(str, arguments)]}
try:
    runpy.run_module("{module}", run_name="__main__")
except SystemExit:
    print("imported", *[name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("module", ["submanifold", "kedro"])
def test_help_lists_the_commands_without_heavy_imports(project, module):
    output = run_python(script_of(module, "--help"), project.path)
    assert all(f"\n  {name} " in output for name in COMMANDS)
    if module == "kedro" and find_spec("kedro_mlflow"):
        pytest.skip("kedro-mlflow, which an earlier version has installed, imports MLflow")
    assert output.endswith("imported\n")


@pytest.mark.parametrize(
    ("command", "imported"),
    [
        (["score", "nothing", "a.png"], ""),
        (["train", "photos", "--params", "training.stepss=5"], " torch"),
    ],
)
def test_a_mistake_is_reported_without_heavy_imports(project, command, imported):
    """Settings are checked against the constructors of flows, which need torch."""
    output = run_python(script_of("submanifold", *command), project.path)
    assert output == f"imported{imported}\n"


def test_a_dry_run_outside_of_a_checkout_prints_only_its_table(tmp_path):
    """Kedro must be told how to log before it is imported: its own way shows deprecations."""
    environment = {name: os.environ[name] for name in os.environ if name != "KEDRO_LOGGING_CONFIG"}
    command = [sys.executable, "-m", "submanifold", "reproduce", "table-1", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("\n") < 12
    assert "table-1 Glow      to run" in done.stdout


def test_run_imports_nothing_heavy_before_its_first_node(project):
    script = """
import sys
from pathlib import Path
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

def loaded(*names):
    print(*[name for name in names if name in sys.modules])

bootstrap_project(Path.cwd())
loaded("torch", "submanifold.settings")
with KedroSession.create(env="test", runtime_params={"device": "cpu"}) as session:
    catalog = session.load_context().catalog
    list(catalog.items())  # creates each dataset
loaded("matplotlib", "scipy.special", "scipy.stats", "sklearn", "sympy", "torch",
       "torch._dynamo", "torchvision")
"""
    lines = run_python(script, project.path).splitlines()
    assert lines[-2:] == ["submanifold.settings", "torch"]
