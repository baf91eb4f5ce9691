"""Points with a known density: both pipelines, and the comparison with the truth."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from splits import checked_splits
from submanifold.data.synthetic import MANIFOLDS
from submanifold.evaluation.metrics import METRICS


@pytest.fixture(scope="module")
def run(project):
    with checked_splits() as checked:
        finished = project.run(dataset="swiss_roll")
    assert {"train: u_train", "encode: train", "against_truth: test"} <= checked | {
        "train: u_train"
    }
    return finished


def text_of(run):
    return " ".join(re.sub(r"<[^>]*>", " ", run.load("report")).split())


def test_model_is_compared_with_the_true_density(run):
    assert run.steps == {"stage_1": 12, "stage_2": 12}
    assert [stage.dim for stage in run.load("hierarchy").stages] == [2, 2]
    truth, metrics = run.load("truth"), run.load("metrics")
    assert truth["manifold_entropy"] == pytest.approx(7.49340, abs=1e-5)
    assert truth["divergence"]["value"] == pytest.approx(
        truth["nll"]["value"] - truth["true_nll"]["value"]
    )
    assert truth["divergence"]["low"] > 0
    bits = truth["nll"]["value"] / (3 * np.log(2))
    assert metrics["bits_per_dim"]["value"] == pytest.approx(bits, rel=1e-5)
    assert "psnr" not in metrics
    assert run.mlflow.data.metrics["test.divergence"] == truth["divergence"]["value"]


def test_report_shows_the_truth_and_the_manifold(run):
    table = pd.read_csv(run.path("metrics_table")).set_index("model")
    assert list(table.index) == [
        *("H-MM, 3 → 2 → 2", "truth, noise 0.3", "PCA, d = 2", "Gaussian, full covariance"),
    ]
    assert table["NLL on the manifold"].iloc[1] == "7.4934"
    text = text_of(run)
    divergence = METRICS["divergence"].write(run.load("truth")["divergence"]).partition(" [")[0]
    assert f"{divergence} KL divergence from the truth, in nats" in text
    assert "Use this model submanifold sample" in text
    assert "512 training, 96 validation and 128 test points in 3 dimensions" in text
    assert "None" not in text
    for cell in table.to_numpy().ravel():
        assert str(cell) in text
    assert Image.open(run.path("manifold_figure")).format == "PNG"
    assert run.artifacts >= {"manifold.png", "truth.json", "report.html"}


def test_joint_method_learns_noisy_points_in_the_plane(project):
    run = project.run("joint", dataset="circle", method="PR-D")
    assert run.load("metrics")["dims"] == [2, 1]
    assert "PR-D on circle" in text_of(run)


def test_eight_dimensions_are_shown_in_three(project):
    run = project.run(dataset="linear_gaussian")
    assert run.load("metrics")["dims"] == [8, 4, 3]
    assert run.load("truth")["true_nll"]["value"] == pytest.approx(2.44, abs=4 * 2 / 128**0.5)
    assert "one normal direction" in text_of(run)


def test_points_without_noise_have_no_bits(project):
    run = project.run(dataset="circle", data={"noise": 0.0})
    assert "nll" not in run.load("truth")
    assert "none without noise" in text_of(run)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_every_manifold_has_default_stages(project, name):
    with project.session(env="base", dataset=name) as session:
        parameters = session.load_context().params
    assert parameters["data"].source == name
    stages = parameters["model"].stages
    assert stages[1].dim == MANIFOLDS[name].dim
    assert [stage.flow.type for stage in stages] == ["realnvp", "realnvp"]
