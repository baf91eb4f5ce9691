"""The default method for images, and the pipeline ood, which uses its model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import command_environment
from sidecars import read_sidecar
from strategies import assert_close
from submanifold.config.resolve import packaged_tables
from submanifold.data.batches import Batches
from submanifold.data.settings import ImageSettings
from submanifold.evaluation.illustrations import pixel_errors
from submanifold.evaluation.ood import measure_ood
from submanifold.evaluation.reconstruction import psnr
from submanifold.pipelines.ood.nodes import gather_images

pytestmark = pytest.mark.pipeline

PHASES = ("density", "rotation", "reconstruction", "rotation_2", "code_flow")
METHOD = "density-first"
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "explore.ipynb"
CELLS = """
import json, sys
from IPython.terminal.interactiveshell import TerminalInteractiveShell
shell = TerminalInteractiveShell.instance()
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
"""


@pytest.fixture(scope="module")
def run(project):
    return project.run(method=METHOD)


@pytest.fixture(scope="module")
def x(run):
    return next(iter(Batches(run.load("x_test"), 64)))[0]


def test_it_is_the_default_for_images(project):
    with project.session(env="base") as session:
        experiment = session._get_config_loader().experiment
        assert (experiment.dataset, experiment.method) == ("digits", "density-first-small")
    with project.session(env="base", dataset="photos") as session:
        assert session._get_config_loader().experiment.method == "density-first"
    with project.session(env="base", dataset="circle") as session:
        assert session._get_config_loader().experiment.method == "H-MM"


def test_trainings_train_and_rotations_keep_the_density(run, x):
    assert run.steps == dict(zip(PHASES, [12, 0, 12, 0, 12], strict=True))
    assert [run.load(f"{name}.history")["steps"] for name in PHASES] == [12, 0, 12, 0, 12]
    for before, after in (PHASES[:2], PHASES[2:4]):
        bits = [run.load(f"{name}.model").bits_per_dim(x) for name in (before, after)]
        assert (bits[0] - bits[1]).abs().max() < 1e-5
    model = run.load("hierarchy")
    flows = [flow["type"] for flow in model.describe()["stages"][0]["flows"]]
    assert flows == ["glow", "rotation"]
    assert [each["stages"] for each in model.notes["phases"]] == [[1]] * 4 + [[2]]


def test_errors_are_measured_at_every_dimension(run):
    metrics = run.load("metrics")
    curve = metrics["curve"]
    assert (curve["dims"][0], curve["dims"][-1]) == (1, 190)
    assert curve["mse"][0] > curve["mse"][len(curve["mse"]) // 2] > curve["mse"][-1] > 0
    assert {2, 8, 24, 32, 100} == {*curve["nearest_dims"]}
    smallest = [d for d in curve["smallest"].values() if d is not None]
    assert smallest == sorted(smallest)
    errors = [metrics[name]["value"] for name in ("nearest_mse", "projection_mse", "mse")]
    assert errors == sorted(errors)
    assert "dimensions.png" in run.artifacts
    page = run.path("report").read_text()
    assert "Error by dimension" in page
    assert "rotation from" in page
    assert "MSE, nearest projection" in run.load("metrics_table").columns


def test_the_report_shows_nearest_projections_of_few_dimensions(run):
    arrays, test, page = run.load("illustrations"), run.load("x_test").x, run.path("report")
    dims, text = arrays["by_dim_dims"].tolist(), page.read_text()
    assert dims == [2, 8, 32, 100]
    for number, dim in enumerate(dims):
        error = pixel_errors(arrays["by_dim_nearest"][number], test[8:16]).mean()
        shown = f"MSE {error:.2g}, PSNR {psnr(error):.1f} dB"
        assert f"<b>d = {dim}, nearest projection</b> {shown}" in text
        assert f"<b>d = {dim}, PCA</b>" in text


def test_scored_events_agree_with_the_report(run):
    scores, metrics = run.load("scored_events"), run.load("metrics")
    page, test = run.path("report").read_text(), scores[scores["split"] == "test"]
    assert scores["split"].value_counts().to_dict() == {"train": 256, "valid": 48, "test": 64}
    mse, bits = (metrics[name]["value"] for name in ("mse", "bits_per_dim"))
    assert test["encoder_distance"].mean() == pytest.approx(mse, rel=0.02)
    assert test["bits_per_dim"].mean() == pytest.approx(bits, abs=0.02)
    assert f"{(test['p_value'] <= 0.1).sum()} of 64" in page


def test_the_flow_on_the_coordinates_keeps_the_manifold(run, project, x):
    other = project.run(until="hierarchy", method="nested")
    assert not any(other.steps.values()), "it has the same first phases"
    before, after = other.load("hierarchy"), run.load("hierarchy")
    assert_close(after.encoder_projection(x), before.encoder_projection(x))
    assert after.log_prob(x).mean() > before.log_prob(x).mean()
    # the densities differ by that of the coordinates
    (u, _), code_flow = before.encode(x), after.stages[1]
    moved, log_det = code_flow.flows[0](u)
    gained = log_det + 0.5 * (u.square() - moved.square()).sum(1)
    of_flows = after.forward(x)[2] - before.forward(x)[2]
    assert (of_flows - gained).abs().max() < 1e-3


def test_a_rotated_stage_can_follow_a_rotated_stage(project, x):
    h_mm = packaged_tables()["methods"]["H-MM"]
    phases = {
        "stage_1": {"stages": 1},
        "rotation": {"rotate": 1},
        "stage_2": {"stages": 2, "reconstruction": {"space": "metric"}},
        "rotation_2": {"rotate": 2},
    }
    small = {"stage_1": {"dim": 24}, "stage_2": {"dim": 12}}
    own = {"methods": {"own": {**h_mm, "phases": phases}}, **small}
    run = project.run(until="metrics", method="own", **own)
    assert sum(run.steps.values()) == 24
    model = run.load("hierarchy")
    assert all(stage.rotation is not None for stage in model.stages)
    bits = [run.load(f"{name}.model").bits_per_dim(x) for name in ("stage_2", "rotation_2")]
    assert (bits[0] - bits[1]).abs().max() < 1e-5
    assert np.isfinite(run.load("metrics")["nearest_mse"]["value"])
    with torch.no_grad():
        assert model.at_dim(20).project(x).shape == x.shape


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images of noise, in nine folders."""
    folder, rng = tmp_path_factory.mktemp("ood") / "my noise", np.random.default_rng(0)
    for number in range(40):
        path = folder / f"{number % 9}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def ood(project, run, pictures):
    return project.run("ood", method=METHOD, ood=str(pictures), only_missing_outputs=True)


def test_ood_pipeline_scores_and_measures_every_image(ood):
    assert ood.steps == {}
    assert ood.load("x_ood").x.shape == (40, 3, 8, 8)
    scores, measured = ood.load("ood_scores"), ood.load("ood_metrics")
    assert scores["part"].value_counts().to_dict() == {"normal": 64, "ood": 40}
    for each in measured["scores"].values():
        assert 0 <= each["auroc"]["low"] <= each["auroc"]["value"] <= each["auroc"]["high"] <= 1
    auroc = measured["scores"]["combination"]["auroc"]["value"]
    assert ood.mlflow.data.metrics["detail/auroc.combination"] == pytest.approx(auroc)
    test = ood.load("x_test").groups
    assert scores["group"].tolist() == [*test, *range(40)]
    assert measured["groups"] == {"normal": len(set(test)), "ood": 40}
    assert measure_ood(scores, ood.load("hierarchy")) == measured
    text, rate = ood.text("ood_report"), measured["alarms"][-1]["rate"]
    assert "my noise" in text
    assert f"over groups of images ({len(set(test))} of photos and 40 of" in text
    assert f"With --alpha={rate:.0%}, submanifold score flags" in text
    assert ood.path("ood_report").read_text().count("data:image/png") == 4 + 3


def test_ood_images_have_the_groups_of_their_source(pictures, tmp_path):
    data = ImageSettings(source="folder", path=str(pictures), size=8, groups="folder")
    events = gather_images(data, tmp_path / "out", tmp_path / "raw")
    known = read_sidecar(tmp_path / "out", "groups")
    assert len(events) == 40
    assert events.groups.tolist() == [*known["test"], *known["valid"], *known["train"]]


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(run, project):
    parameters = project.path / "conf" / "test" / "parameters.yml"
    before = parameters.read_text()
    parameters.write_text(before.replace("method: H-MM", f"method: {METHOD}"))
    done = subprocess.run(
        [sys.executable, "-c", CELLS, str(NOTEBOOK)],
        cwd=project.path,
        env={**command_environment(), "KEDRO_ENV": "test", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    parameters.write_text(before)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for text in ("bits per dimension, from", "nearest projection: mean squared", "AUROC"):
        assert text in done.stdout
    assert "turned-0.png" in done.stdout
