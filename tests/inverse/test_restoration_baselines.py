"""Baselines of restoration, against closed forms and other libraries."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy
import torch
from skimage.restoration import denoise_tv_chambolle

from calibrated import smooth_images
from submanifold.evaluation.baselines import PCA
from submanifold.inverse import baselines, parse
from submanifold.inverse.baselines import adjoint_of, matrix_of
from submanifold.inverse.comparison import coverage

SHAPE = (2, 4, 4)
DIM = math.prod(SHAPE)


@pytest.fixture
def gaussian():
    """A mean and a covariance, and the PCA with them."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(DIM, DIM)) / 10
    mean, covariance = rng.uniform(size=DIM), factor @ factor.T
    variances, axes = torch.linalg.eigh(torch.from_numpy(covariance))
    return mean, covariance, PCA(torch.from_numpy(mean), axes.flip(1), variances.flip(0))


@pytest.mark.parametrize("text", ["denoise:0.1", "superresolve:2", "deblur:0.5", "sense:5"])
def test_the_adjoint_and_the_matrix_agree(text):
    operator = parse(text, SHAPE).operator
    x, matrix = torch.rand(3, *SHAPE), matrix_of(operator, SHAPE)
    torch.testing.assert_close(operator(x).flatten(1), x.flatten(1) @ matrix.T)
    y = torch.rand_like(operator(x))
    torch.testing.assert_close(adjoint_of(operator, SHAPE)(y).flatten(1), y.flatten(1) @ matrix)


def test_principal_components_restore_images_in_their_span(gaussian):
    _, _, pca = gaussian
    coordinates = torch.rand(3, 6, dtype=torch.double)
    x = (pca.mean + coordinates @ pca.axes[:, :6].T).view(-1, *SHAPE).float()
    task = parse("sense:9", SHAPE)
    restorer = baselines.principal_components(pca, task, SHAPE)(6)
    torch.testing.assert_close(restorer(task.operator(x)), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("weight", [0.02, 0.1])
def test_total_variation_is_that_of_scikit_image(weight, monkeypatch):
    monkeypatch.setattr(baselines, "DUAL_ITERATIONS", 500)
    x = torch.from_numpy(smooth_images(2, 0)).float() / 255
    x += 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    expected = [
        denoise_tv_chambolle(each.numpy(), weight, eps=1e-9, max_num_iter=3000, channel_axis=0)
        for each in x
    ]
    np.testing.assert_allclose(baselines.total_variation(x, weight), expected, atol=1e-3)


def test_lasso_meets_its_optimality_conditions(monkeypatch):
    monkeypatch.setattr(baselines, "ITERATIONS", 2000)
    task, weight = parse("sense:20", SHAPE, noise=0.1), 0.5
    y = task.operator(torch.rand(2, *SHAPE))
    x = baselines.regularized(baselines.cosine_sparsity, task, SHAPE, weight)(y)
    gradient = adjoint_of(task.operator, SHAPE)(task.operator(x) - y)
    coefficients, slopes = (
        scipy.fft.dctn(each.numpy(), axes=(-2, -1), norm="ortho") for each in (x, gradient)
    )
    penalty = weight * task.noise
    assert np.abs(slopes).max() < penalty + 1e-4
    used = np.abs(coefficients) > 1e-3
    assert 0 < used.mean() < 1
    np.testing.assert_allclose(slopes[used], -penalty * np.sign(coefficients[used]), atol=1e-3)


def test_wavelets_shrink_details_but_not_the_mean():
    pytest.importorskip("pywt")
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(baselines.wavelet_sparsity(x, 0.0), x)
    constant = torch.full_like(x, 0.3)
    torch.testing.assert_close(baselines.wavelet_sparsity(constant, 1.0), constant)
    smoothed = baselines.wavelet_sparsity(x, 0.3)
    assert smoothed.std() < 0.9 * x.std()


@pytest.mark.parametrize("channels", [1, 3])
def test_bm3d_denoises(channels):
    pytest.importorskip("bm3d")
    x = torch.linspace(0.2, 0.8, 16).expand(1, channels, 16, 16)
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    restored = baselines.bm3d(0.1)(y)
    assert restored.shape == x.shape
    assert (restored - x).square().mean() < (y - x).square().mean() / 4


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_normal_errors_have_the_coverage_of_their_level(level):
    error = torch.randn(2, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    posterior = SimpleNamespace(
        image=torch.full(error.shape, 0.5), std=0.1 * torch.ones(2, 1, 1, 1)
    )
    found = coverage(posterior, 0.5 + 0.1 * error, level)
    assert found == pytest.approx([level, level], abs=0.02)
