"""The notebook, run from its first cell to its last on a model that was trained before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "explore.ipynb"
CELLS = """
import json, sys
from IPython.terminal.interactiveshell import TerminalInteractiveShell
shell = TerminalInteractiveShell.instance()
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
"""


@pytest.fixture
def trained(project):
    parameters = project.path / "conf" / "test" / "parameters.yml"
    text = parameters.read_text()
    assert "method: H-MM" in text
    parameters.write_text(text.replace("method: H-MM", "method: nested"))
    project.run()
    return project


def test_every_cell_of_the_notebook_runs_and_says_what_it_found(trained):
    done = subprocess.run(
        [sys.executable, "-c", CELLS, str(NOTEBOOK)],
        cwd=trained.path, env={**os.environ, "KEDRO_ENV": "test", "MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for said in ("bits per dimension, from", "nearest point: mean squared", "AUROC", "TwoNN"):
        assert said in done.stdout
    assert "negative-0.png" in done.stdout
