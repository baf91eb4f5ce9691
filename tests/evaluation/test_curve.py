"""The error of projections by dimension, of a model whose errors are computed by hand."""

import numpy as np
import pytest
import torch

from submanifold.data.batches import Batches
from submanifold.evaluation import curve as module
from submanifold.evaluation.curve import error_curve
from submanifold.evaluation.reconstruction import psnr, reconstruction, squared_errors
from submanifold.flows import Glow
from submanifold.models import Hierarchy, Stage
from submanifold.models.model import NEAREST_STEPS

LARGEST = 16
BASELINES = {"pca_mse": [0.1] * (LARGEST + 1), "pca_mse_half_width": [0.0] * (LARGEST + 1)}
PSNRS = range(18, 31)


@pytest.fixture(scope="module")
def model(test_images):
    torch.manual_seed(0)
    made = Hierarchy([Stage(Glow((1, 4, 4), levels=1, steps=2, width=4), 8)])
    with torch.no_grad():
        made(Batches(test_images, 64).at(0))
        for weight in made.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return made.eval()


@pytest.fixture(scope="module")
def test_images():
    noise = np.random.default_rng(0).normal(128, 10, (300, 1, 4, 4))
    return noise.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def curve(model, test_images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PSNRS", PSNRS)
        return error_curve(model, test_images, BASELINES, torch.device("cpu"))


def error(project, images):
    return reconstruction(squared_errors(project, Batches(images, 64)))["mse"]["value"]


def test_errors_are_those_of_the_first_256_images(curve, model, test_images):
    assert curve["n"] == 256
    assert (curve["dims"][0], curve["dims"][-1]) == (1, LARGEST)
    for dim, mse in zip(curve["dims"], curve["mse"], strict=True):
        expected = error(model.at_dim(dim).project, test_images[:256])
        assert mse == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert curve["pca_mse"] == [0.1] * len(curve["dims"])


def test_the_nearest_curve_is_that_of_the_nearest_point(curve, model, test_images):
    assert curve["n_nearest"] == 64
    for dim, mse in zip(curve["nearest_dims"], curve["nearest_mse"], strict=True):
        at, images = model.at_dim(dim), test_images[:64]
        nearest = error(lambda x, at=at: at.project(x, steps=NEAREST_STEPS), images)
        assert mse == pytest.approx(nearest, rel=1e-5)
        assert mse < 0.999 * error(at.project, images)


def test_the_smallest_dimension_reaches_its_psnr_and_the_one_below_does_not(
    curve, model, test_images
):
    every = [psnr(error(model.at_dim(d).project, test_images[:256])) for d in range(1, LARGEST + 1)]
    assert every == sorted(every)
    expected = {
        str(wanted): next(d for d, reached in enumerate(every, start=1) if reached >= wanted)
        for wanted in PSNRS
    }
    assert len(set(expected.values())) > 4
    assert curve["smallest"] == expected
