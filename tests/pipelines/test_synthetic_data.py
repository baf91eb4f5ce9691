"""Points with a known density: both pipelines, and the comparison with the truth."""

import numpy as np
import pytest

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def run(project):
    return project.run(dataset="swiss_roll")


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
    assert run.mlflow.data.metrics["detail/divergence"] == truth["divergence"]["value"]


def test_eight_dimensions_are_shown_in_three(project):
    run = project.run(dataset="linear_gaussian")
    assert run.load("metrics")["dims"] == [8, 4, 3]
    assert run.load("truth")["true_nll"]["value"] == pytest.approx(2.44, abs=4 * 2 / 128**0.5)
    assert "one normal direction" in run.text()


def test_points_without_noise_have_no_bits(project):
    run = project.run(dataset="circle", data={"noise": 0.0})
    assert "nll" not in run.load("truth")
    assert "none without noise" in run.text()
