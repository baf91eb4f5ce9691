import numpy as np
import pytest
import torch

from strategies import affine, initialized_glow, perturb
from submanifold.data import Events
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PROJECTED, projected_events
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.reconstruction import (
    error_curve,
    psnr,
    reconstruction,
    smallest_dim,
    squared_errors,
)
from submanifold.models import Hierarchy, Stage

LARGEST = 16
PCA = {"pca_mse": [0.1] * (LARGEST + 1), "pca_mse_half_width": [0.0] * (LARGEST + 1)}
COUNT = PROJECTED
BASELINES = {"projected": PCA}


def test_psnr_is_that_of_the_mean_squared_error():
    result = reconstruction(np.array([0.01, 0.001, 0.004]))
    mse, found = result["mse"], result["psnr"]
    assert mse["value"] == pytest.approx(0.005)
    assert found["value"] == pytest.approx(-10 * np.log10(0.005))
    assert found["low"] == pytest.approx(-10 * np.log10(mse["high"]))
    assert found["high"] == pytest.approx(-10 * np.log10(mse["low"]))
    assert mse["n"] == found["n"] == result["psnr_per_image"]["n"] == 3
    assert result["psnr_per_image"]["value"] == pytest.approx((20 + 30 - 10 * np.log10(0.004)) / 3)
    assert result["overflows"] == 0
    assert psnr(10**-2.73) == pytest.approx(27.3)


@pytest.mark.parametrize(
    ("errors", "of_images", "mse", "n", "overflows"),
    [
        ([0.1, np.nan, 0.3, np.inf, 477.0, 1.0], True, (0.1 + 0.3 + 4) / 6, 6, 3),
        ([0.1, np.nan, 5.3, np.inf], False, 2.7, 2, 2),
        ([np.nan] * 3, False, None, 0, 3),
        ([], True, None, 0, 0),
    ],
)
def test_overflows_count_as_one_for_images_and_are_left_out_for_points(
    errors, of_images, mse, n, overflows
):
    result = reconstruction(np.array(errors), of_images)
    assert result["mse"]["value"] == pytest.approx(mse)
    assert (result["mse"]["n"], result["overflows"]) == (n, overflows)
    assert ("psnr" in result) == of_images


def test_groups_are_those_of_the_errors_that_count():
    """The first error overflows; the others are 0, 1 and 2 in nine groups of two."""
    of_pairs, pairs = np.repeat([0.0, 1, 2] * 3, 2), np.repeat(np.arange(9), 2)
    errors, groups = np.concatenate([[np.nan], of_pairs]), np.concatenate([[99], pairs])
    found = reconstruction(errors, of_images=False, groups=groups)["mse"]
    assert found == mean_interval(of_pairs, pairs)
    assert (found["n"], found["groups"]) == (18, 9)
    of_images = reconstruction(errors, groups=groups)
    assert {of_images[name]["groups"] for name in ("mse", "psnr", "psnr_per_image")} == {10}


@pytest.fixture(scope="module")
def images():
    noise = np.random.default_rng(0).normal(128, 10, (300, 1, 4, 4))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model(images):
    return perturb(initialized_glow(images, 8, steps=2))


@pytest.fixture(scope="module")
def curve(model, images):
    return error_curve(model, Events(images), BASELINES, torch.device("cpu"))


def error(project, images):
    return reconstruction(squared_errors(project, Batches(images, 64)))["mse"]["value"]


def test_error_curve_has_the_errors_of_each_dimension(curve, model, images):
    few = images[projected_events(len(images))]
    assert curve["n"] == len(few) == COUNT
    assert (curve["dims"][0], curve["dims"][-1]) == (1, LARGEST - 2), "others are nearly exact"
    for dim, mse in zip(curve["dims"], curve["mse"], strict=True):
        expected = error(model.at_dim(dim).encoder_projection, few)
        assert mse == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert curve["pca_mse"] == [0.1] * len(curve["dims"])
    assert curve["nearest_dims"] == [2, 8]
    for dim, mse in zip(curve["nearest_dims"], curve["nearest_mse"], strict=True):
        at = model.at_dim(dim)
        nearest = error(lambda x, at=at: at.project(x, nearest=True), few)
        assert mse == pytest.approx(nearest, rel=1e-5)
        assert mse < 0.999 * error(at.encoder_projection, few)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (0.05, 2),
        (0.04, 2),
        (0.02, 4),
        (0.0201, 4),
        (0.0199, 5),
        (0.005, 16),
        (0.0025, 32),
        (0.002, None),
    ],
)
def test_the_smallest_dimension_is_interpolated(goal, expected):
    """The error is 0.08 / d."""
    assert smallest_dim([2, 8, 32], [0.04, 0.01, 0.0025], goal) == expected


def test_error_curve_of_vectors_has_goals_in_the_variance():
    """With orthogonal axes of known variances, d axes explain a known share."""
    scales = np.sqrt([6.0, 2.2, 1.4, 0.4], dtype=np.float32)
    rows = np.random.default_rng(0).choice([-1, 1], (400, 4)).astype(np.float32) * scales
    model = Hierarchy([Stage(affine(torch.eye(4)), 2)]).eval()
    pca = {"projected": {"pca_mse": [0.0] * 5, "pca_mse_half_width": None}}
    found = error_curve(model, Events(rows), pca, torch.device("cpu"))
    assert found["goals"]["explained variance 0.9"] == pytest.approx(0.25, rel=0.02)
    assert found["nearest_dims"] == found["dims"] == [1, 2]
    assert found["mse"] == found["nearest_mse"] == pytest.approx([1.0, 0.45], rel=1e-5)
    assert [*found["smallest"].values()] == [1, 2, None, None, None]
