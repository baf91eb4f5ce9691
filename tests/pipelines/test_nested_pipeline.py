"""The main method: likelihood, rotation, penalty, rotation; two rotated stages; the notebook."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from strategies import assert_close
from submanifold.data.batches import Batches
from submanifold.models import Hierarchy

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "explore.ipynb"
CELLS = """
import json, sys
from IPython.terminal.interactiveshell import TerminalInteractiveShell
shell = TerminalInteractiveShell.instance()
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
"""


PHASES = ("density", "rotation", "reconstruction", "rotation_2", "code_flow")


@pytest.fixture(scope="module")
def run(project):
    return project.run(method="nested-then-flow")


def test_it_is_the_default_for_images(project):
    with project.session(env="base") as session:
        loader = session._get_config_loader()
        assert loader.experiment.method == "density-first"
        assert loader.experiment.pipeline == "hierarchical"
    with project.session(env="base", dataset="circle") as session:
        assert session._get_config_loader().experiment.method == "H-MM"


def test_only_trainings_train(run):
    assert run.steps == {"density": 12, "reconstruction": 12, "code_flow": 12}
    assert [run.load(f"{name}.history")["steps"] for name in PHASES] == [12, 0, 12, 0, 12]


def test_a_rotation_leaves_the_density_as_it_is(run):
    x = next(iter(Batches(run.load("x_test"), 64)))
    for before, after in (PHASES[:2], PHASES[2:4]):
        bits = [run.load(f"{name}.model").bits_per_dim(x) for name in (before, after)]
        assert (bits[0] - bits[1]).abs().max() < 1e-5


def test_the_rotation_is_in_the_models_file(run):
    model = run.load("hierarchy")
    assert isinstance(model, Hierarchy)
    assert [each["type"] for each in model.config["stages"][0]["bijections"]] == [
        "glow", "rotation"
    ]  # fmt: skip
    assert [each["stages"] for each in model.notes["phases"]] == [[1]] * 4 + [[2]]


def test_every_dimension_is_measured_beside_pca(run):
    metrics = run.load("metrics")
    curve = metrics["curve"]
    assert (curve["dims"][0], curve["dims"][-1]) == (1, 192)
    assert len(curve["dims"]) == len(curve["mse"]) == len(curve["pca_mse"])
    assert curve["mse"][0] > curve["mse"][len(curve["mse"]) // 2] > curve["mse"][-1]
    assert curve["mse"][-1] == pytest.approx(0, abs=1e-6)
    at = dict(zip(curve["nearest_dims"], curve["nearest_mse"], strict=True))
    assert all(value >= 0 for value in at.values())
    smallest = [d for d in curve["smallest"].values() if d is not None]
    assert smallest == sorted(smallest)
    assert metrics["nearest_mse"]["value"] <= metrics["mse"]["value"]
    assert metrics["nearest_mse"]["n"] == 64


def test_mlflow_has_the_curve_by_dimension(run, project):
    client = project.mlflow_client
    rows = client.get_metric_history(run.mlflow.info.run_id, "test.by_dimension.mse")
    curve = run.load("metrics")["curve"]
    assert {row.step: row.value for row in rows} == pytest.approx(
        dict(zip(curve["dims"], curve["mse"], strict=True))
    )
    assert run.mlflow.data.metrics["test.nearest_mse"] > 0
    assert "dimensions.png" in {each.path for each in client.list_artifacts(run.mlflow.info.run_id)}


def test_the_report_shows_both_errors_and_the_curve(run):
    page = run.path("report").read_text()
    assert "Reconstruction error by dimension" in page
    assert "MSE, nearest projection" in page
    assert "rotation from" in page
    assert run.path("dimensions_figure").exists()
    assert "MSE, nearest projection" in run.load("metrics_table").columns


def test_a_changed_penalty_takes_the_density_and_its_rotation_from_the_cache(run, project):
    other = project.run(
        until="hierarchy", method="nested", reconstruction={"reconstruction": {"weight": 7.0}}
    )
    assert other.steps == {"density": 0, "reconstruction": 12} or other.steps == {
        "reconstruction": 12
    }


def test_the_flow_on_its_code_leaves_the_manifold_as_it_is(run, project):
    other = project.run(until="hierarchy", method="nested")
    assert not any(other.steps.values())
    before, after = other.load("hierarchy"), run.load("hierarchy")
    x = next(iter(Batches(run.load("x_test"), 64)))
    assert_close(after.project(x), before.project(x))
    assert after.log_prob(x).mean() > before.log_prob(x).mean()
    # what differs in the density is that of the code
    (u, _), of_code = before.encode(x), after.stages[1]
    moved, log_det = of_code.flow(u)
    gained = log_det + 0.5 * (u.square() - moved.square()).sum(1)
    assert (after.log_prob(x) - before.log_prob(x) - gained).abs().max() < 1e-3


def test_a_wanted_psnr_finds_its_weight(run, project):
    wanted = {"reconstruction": {"target": {"psnr": 45.0}}}
    other = project.run(until="hierarchy", method="nested", reconstruction=wanted)
    history = other.load("reconstruction.history")
    weights = [row["reconstruction_weight"] for row in history["train"]]
    assert weights[-1] > 45.0
    assert "reconstruction.target" in history["warnings"]["target"]  # twelve steps are too few


def test_a_second_stage_by_the_metric_and_rotated(project):
    run = project.run(until="metrics", method="H-MM-rotated")
    assert run.steps == {"stage_1": 12, "stage_2": 12}
    model = run.load("hierarchy")
    assert all(stage.rotation is not None for stage in model.stages)
    x = next(iter(Batches(run.load("x_test"), 64)))
    bits = [run.load(f"{name}.model").bits_per_dim(x) for name in ("stage_2", "rotation_2")]
    assert (bits[0] - bits[1]).abs().max() < 1e-5
    assert np.isfinite(run.load("metrics")["nearest_mse"]["value"])
    with torch.no_grad():
        assert model.at_dim(20).project(x).shape == x.shape


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs_and_says_what_it_found(run, project):
    parameters = project.path / "conf" / "test" / "parameters.yml"
    before = parameters.read_text()
    parameters.write_text(before.replace("method: H-MM", "method: nested-then-flow"))
    done = subprocess.run(
        [sys.executable, "-c", CELLS, str(NOTEBOOK)],
        cwd=project.path, env={**os.environ, "KEDRO_ENV": "test", "MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    parameters.write_text(before)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for said in ("bits per dimension, from", "nearest projection: mean squared", "AUROC", "TwoNN"):
        assert said in done.stdout
    assert "negative-0.png" in done.stdout
