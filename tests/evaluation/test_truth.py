import numpy as np
import pytest
import torch

from strategies import affine
from submanifold.data.synthetic import LinearGaussian
from submanifold.evaluation.truth import against_truth
from submanifold.models import Hierarchy, Stage


def whitening(scale=1.0, dim=3):
    """The flow of the Gaussian; its density is too wide or narrow for another scale."""
    truth = LinearGaussian()
    matrix = (truth.axes / np.sqrt(truth.variances)).T / scale
    return Hierarchy([Stage(affine(torch.from_numpy(matrix)), dim)]).double()


@pytest.fixture(scope="module")
def test_points():
    return LinearGaussian().sample(5000, np.random.default_rng(0))


def test_true_model_has_no_divergence(test_points):
    samples = whitening().sample(100).numpy()
    found = against_truth(whitening(), LinearGaussian(), test_points, samples)
    # the flow's matrix is stored in float32
    assert found["divergence"]["value"] == pytest.approx(0, abs=1e-5)
    assert found["nll"]["value"] == pytest.approx(2.44127, abs=4 * 2 / 5000**0.5)
    assert found["true_nll"]["n"] == 5000
    error = (found["manifold_nll"]["high"] - found["manifold_nll"]["low"]) / 2
    assert found["manifold_nll"]["value"] == pytest.approx(found["manifold_entropy"], abs=2 * error)
    assert found["projection_distance"]["value"] < 1e-5
    assert found["sample_distance"]["value"] < 1e-5


def test_divergence_of_a_wide_density_is_the_exact_one(test_points):
    found = against_truth(whitening(1.5), LinearGaussian(), test_points, test_points)
    exact = 8 * (np.log(1.5) + (1 / 1.5**2 - 1) / 2)
    low, high = found["divergence"]["low"], found["divergence"]["high"]
    assert low < exact < high
    assert high - low < 0.3 * (found["nll"]["high"] - found["nll"]["low"]) + 0.1
    off = np.square(test_points @ LinearGaussian().axes[:, 3:]).sum(1) ** 0.5
    assert found["sample_distance"]["value"] == pytest.approx(off.mean())


@pytest.mark.parametrize("scale", [0.7, 1.5])
def test_manifold_divergence_of_another_width_is_the_exact_one(test_points, scale):
    """KL(N(0, I) || N(0, scale^2 I)) in the three dimensions of the manifold, positive for both."""
    found = against_truth(whitening(scale), LinearGaussian(), test_points, test_points)
    exact = 3 * (np.log(scale) + (1 / scale**2 - 1) / 2)
    divergence = found["manifold_divergence"]
    assert exact > 0.2
    assert divergence["low"] < exact < divergence["high"]
    assert divergence["high"] - divergence["low"] < exact / 2
    above = found["manifold_nll"]["value"] - found["manifold_entropy"]
    assert divergence["value"] == pytest.approx(above, abs=0.1)
