"""The Gaussian with the covariance of training data, against closed forms."""

import math

import numpy as np
import pytest
import torch

from calibrated import smooth_images
from strategies import initialized_glow
from submanifold.evaluation.gaussian import Gaussian
from submanifold.inverse import parse
from submanifold.inverse.linear import GaussianPosterior, matrix_of
from submanifold.models import Model

SHAPES = [(2, 4, 4), (3, 2, 6), (9,)]


def fitted(shape, rank=4):
    """A Gaussian in double precision with random axes, and its dense covariance."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(math.prod(shape),) * 2) / 10
    events = (rng.normal(size=(400, math.prod(shape))) @ mixing).reshape(400, *shape)
    found = Gaussian.fit(events[:300].astype(np.float32), events[300:].astype(np.float32), rank)
    basis = torch.eye(math.prod(shape)).double().view(-1, *shape)
    return found, found.covariance_product(basis).flatten(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_draws_have_one_covariance(shape):
    gaussian, covariance = fitted(shape)
    torch.testing.assert_close(covariance, covariance.T)
    v = torch.randn(5, *shape).double()
    expected = (v.flatten(1) @ torch.linalg.inv(covariance) * v.flatten(1)).sum(1)
    torch.testing.assert_close(gaussian.precision_product(v), expected)
    factor = gaussian.draw(torch.eye(math.prod(shape)).double()).flatten(1)
    torch.testing.assert_close(factor.T @ factor, covariance)


def test_the_covariance_is_of_training_data_and_its_shrinkage_of_validation_data():
    rng = np.random.default_rng(0)
    train, valid = (rng.normal(size=(n, 6)).astype(np.float32) for n in (10, 500))
    small = Gaussian.fit(train, 0.1 * valid + 5)
    torch.testing.assert_close(small.mean, torch.from_numpy(train).double().mean(0))
    axes = torch.eye(6).double()
    variances = small.covariance_product(axes).diagonal()
    np.testing.assert_allclose(variances, train.var(0), rtol=1e-4)
    held_out, memorized = (Gaussian.fit(train, data).eigenvalues for data in (valid, train))
    assert held_out.max() / held_out.min() < 0.5 * memorized.max() / memorized.min()


@pytest.mark.parametrize("text", ["denoise:0.1", "inpaint:2", "superresolve:2", "sense:5"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_posterior_is_the_closed_form(text, scale):
    shape = (2, 4, 4)
    gaussian, covariance = fitted(shape)
    task = parse(text, shape)
    noise = task.noise / 5
    posterior = GaussianPosterior(gaussian, lambda x: task.operator(x) + 1, noise)
    matrix = matrix_of(task.operator, shape, gaussian.mean)
    precision = torch.linalg.inv(scale**2 * covariance) + matrix.T @ matrix / noise**2
    y = torch.randn(3, len(matrix)).double()
    posterior.scale = torch.full((3, 1), scale).double()
    mean = gaussian.mean.flatten()
    residual = y - 1 - matrix @ mean
    expected = mean + torch.linalg.solve(precision, matrix.T @ residual.T / noise**2).T
    torch.testing.assert_close(posterior.estimate(y).flatten(1), expected)
    v = torch.randn(6, *shape).double()
    found = posterior.precision_product(v)
    torch.testing.assert_close(found, (v.flatten(1) @ precision * v.flatten(1)).sum(1))
    product = posterior.covariance_product(v).flatten(1)
    torch.testing.assert_close(product @ precision, v.flatten(1), rtol=1e-5, atol=1e-5)
    drawn = posterior.draw(21_000).flatten(1)
    expected = torch.linalg.inv(precision)
    np.testing.assert_allclose(drawn.T.cov(), expected, atol=0.05 * float(expected.max()))


def test_observations_have_the_scale_of_their_events():
    gaussian, _ = fitted((2, 8, 8))
    scales = torch.tensor([1.0, 0.5, 0.125]).double()[:, None]
    generator = torch.Generator().manual_seed(1)
    deviations = scales * torch.randn(3, 128, generator=generator).double()
    x = gaussian.mean + gaussian.draw(deviations)
    posterior = GaussianPosterior(gaussian, lambda x: x[:, :1], 1e-3)
    scaled = posterior.scaled(x[:, :1].flatten(1))
    torch.testing.assert_close(scaled.scale, scales, rtol=1e-6, atol=0)
    copies = torch.arange(6).double().view(6, 1, 1, 1) * torch.ones(2, 8, 8).double()
    y = x[:, :1].flatten(1)
    estimates, products = scaled.estimate(y), scaled.covariance_product(copies)
    for n, scale in enumerate(scales):
        posterior.scale = scale[None]
        torch.testing.assert_close(estimates[n], posterior.estimate(y[n : n + 1])[0])
        product = posterior.covariance_product(copies)
        torch.testing.assert_close(products[n::3], product[n::3])


def test_the_file_of_a_model_keeps_it(tmp_path):
    images = smooth_images(200, 0)
    model = initialized_glow(images, 5)
    model.gaussian = Gaussian.fit(images[:150], images[150:], rank=7).to_tensors()
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    expected, found = (Gaussian.from_tensors(each.gaussian) for each in (model, loaded))
    assert found.axes.shape == (192, 7)
    torch.testing.assert_close(found.axes.T @ found.axes, torch.eye(7).double())
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), tensor, rtol=0, atol=0)
    at_dim = loaded.at_dim(3)
    assert at_dim.gaussian.keys() == loaded.gaussian.keys()
