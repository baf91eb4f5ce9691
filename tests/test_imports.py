"""Commands and the package import only what they need: imports are most of their time."""

import json

import pytest

from calibrated import calibrated_model, png, smooth_images
from submanifold.inference.records import RunRecord, write_record
from test_main import run_python

pytestmark = pytest.mark.pipeline

HEAVY = {"kedro", "kedro_mlflow", "matplotlib", "mlflow", "pandas", "scipy", "sklearn", "torch"}
TRACKING = {"kedro", "kedro_mlflow", "mlflow"}
FIT = """
import numpy as np
from submanifold.inference.predictor import Predictor
from submanifold.sklearn import ManifoldFlow
x = np.random.default_rng(0).normal(size=(60, 2))
flow = ManifoldFlow(steps=5).fit(x)
flow.p_values(x)
Predictor(flow.model_)
"""
COMMAND = """
import sys
from submanifold.cli import cli
cli({}, standalone_mode=False)
"""


def imported(code, folder):
    """Return the modules that code imports in a process of its own."""
    return {*run_python(f"{code}\nimport sys; print(*sys.modules)", folder).split()}


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import submanifold", set()),
        ("import submanifold.cli", set()),
        (FIT, HEAVY - TRACKING),
    ],
)
def test_heavy_packages_are_imported_where_they_are_used(code, allowed, tmp_path):
    assert HEAVY & imported(code, tmp_path) <= allowed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the record and the files of a finished run, and a picture."""
    path = tmp_path_factory.mktemp("runs")
    files = {"model": "run/hierarchy.safetensors", "metrics": "run/metrics", "report": "run/report"}
    record = RunRecord("", "key", "photos", "Glow", "2026-01-01", **files)
    write_record(path, record, "first")
    calibrated_model().save(path / record.model)
    (path / record.report).touch()
    (path / record.metrics).write_text(json.dumps({"bits_per_dim": {"value": 3.25}, "dims": [20]}))
    (path / "new.png").write_bytes(png(smooth_images(1, 5)[0]))
    return path


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["runs"], {"scipy"}),
        (["info", "first"], {"pandas", "scipy", "torch"}),
        (["score", "first", "new.png"], {"pandas", "scipy", "torch"}),
        (["compare", "first"], {"pandas", "scipy"} | TRACKING),
    ],
)
def test_commands_import_what_they_need(arguments, allowed, folder):
    assert HEAVY & imported(COMMAND.format(arguments), folder) <= allowed


def test_a_context_needs_no_torch_no_table_and_no_database(new_project):
    path = new_project().path
    (path / "data/mlflow.db").unlink()
    script = """
from pathlib import Path
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
bootstrap_project(Path.cwd())
params = {"dataset": "table", "data": {"path": "missing.csv"}}
with KedroSession.create(env="test", runtime_params=params) as session:
    context = session.load_context()
    assert context.mlflow.server.mlflow_tracking_uri.endswith("/data/mlflow.db")
"""
    assert "torch" not in imported(script, path)
    assert not (path / "data/mlflow.db").exists()


def test_a_list_of_pipelines_creates_no_database(new_project):
    project = new_project()
    (project.path / "data/mlflow.db").unlink()
    code, output = project.kedro("registry", "list")
    assert code == 0, output
    assert "hierarchical" in output
    assert not (project.path / "data/mlflow.db").exists()
