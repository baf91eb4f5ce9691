"""Points with a known density through both pipelines, to a report beside the truth."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from submanifold.data.synthetic import MANIFOLDS


@pytest.fixture(scope="module")
def run(project):
    return project.run(dataset="swiss_roll")


def text_of(run):
    return " ".join(re.sub(r"<[^>]*>", " ", run.load("report")).split())


def test_the_stages_are_those_of_the_dataset(run):
    hierarchy = run.load("hierarchy")
    assert hierarchy.event_shape == (3,)
    assert [stage.dim for stage in hierarchy.stages] == [2, 2]
    assert run.load("x_train").shape == (512, 3)
    assert run.load("x_train").dtype == np.float32
    assert run.steps == {"stage_1": 12, "stage_2": 12}


def test_the_truth_stands_beside_what_was_learned(run):
    truth, metrics = run.load("truth"), run.load("metrics")
    assert truth["manifold_entropy"] == pytest.approx(7.49340, abs=1e-5)
    assert truth["divergence"]["value"] == pytest.approx(
        truth["nll"]["value"] - truth["true_nll"]["value"]
    )
    assert truth["divergence"]["low"] > 0
    assert metrics["bits_per_dim"]["value"] == pytest.approx(
        truth["nll"]["value"] / (3 * np.log(2)), rel=1e-5
    )
    assert "psnr" not in metrics
    table = pd.read_csv(run.path("metrics_table")).set_index("model")
    assert list(table.index) == [
        "H-MM, 3 → 2 → 2",
        "truth, noise 0.3",
        "PCA, d = 2",
        "Gaussian, full covariance",
    ]
    assert table["NLL on the manifold"].iloc[1] == "7.4934"
    text = text_of(run)
    assert "H-MM on swiss_roll" in text
    assert f"{truth['divergence']['value']:.3f} KL divergence in nats" in text
    assert "512 training, 128 validation and 128 test points in 3 dimensions" in text
    assert "None" not in text
    for cell in table.to_numpy().ravel():
        assert str(cell) in text


def test_the_picture_and_the_figures_are_in_the_mlflow_run(run, project):
    image = Image.open(io.BytesIO(run.path("manifold_figure").read_bytes()))
    assert min(image.size) > 300
    artifacts = project.mlflow_client.list_artifacts(run.mlflow.info.run_id)
    assert {a.path for a in artifacts} >= {"manifold.png", "truth.json", "report.html"}
    assert run.mlflow.data.metrics["test.divergence"] == run.load("truth")["divergence"]["value"]
    assert run.mlflow.data.metrics["test.manifold_entropy"] == pytest.approx(7.4934, abs=1e-4)


def test_a_joint_method_learns_points_too(project):
    run = project.run("joint", dataset="circle", method="PR-D")
    hierarchy = run.load("hierarchy")
    assert (hierarchy.event_shape, hierarchy.dim, len(hierarchy.stages)) == ((2,), 1, 1)
    assert run.load("metrics")["dims"] == [2, 1]
    assert "PR-D on circle" in text_of(run)


def test_eight_dimensions_are_shown_in_three(project):
    run = project.run(dataset="linear_gaussian")
    assert run.load("metrics")["dims"] == [8, 4, 3]
    assert run.load("truth")["true_nll"]["value"] == pytest.approx(2.44, abs=4 * 2 / 128**0.5)
    assert "one normal direction" in text_of(run)


def test_without_noise_no_bits_are_reported(project):
    """Whatever twelve steps have found: a thin smooth misfit is what the guard looks for."""
    run = project.run(dataset="circle", data={"noise": 0.0})
    assert "nll" not in run.load("truth")
    assert "none without noise" in text_of(run)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_every_manifold_has_settings_that_fit_it(project, name):
    with project.session(env="base", dataset=name) as session:
        parameters = session.load_context().params
    assert parameters["data"].source == name
    stages = parameters["model"].stages
    assert stages[1].dim == MANIFOLDS[name].dim
    assert [stage.flow.type for stage in stages] == ["realnvp", "realnvp"]
