"""Restorations, against the closed form of a linear-Gaussian model."""

import numpy as np
import pytest
import torch

from calibrated import smooth_images
from strategies import initialized_glow
from submanifold.common.errors import UserError
from submanifold.evaluation.gaussian import Gaussian
from submanifold.flows import Affine, make_conditional
from submanifold.inverse import Denoise, Superresolve, restoration, restore
from submanifold.inverse.linear import GaussianPosterior
from submanifold.inverse.posterior import latents_of
from submanifold.inverse.restoration import Restoration, coverage
from submanifold.inverse.sampler import r_hat
from submanifold.models import Hierarchy, Stage

DIM = 6


def linear(off_manifold_scale=1.0, **condition):
    """A linear-Gaussian model in double precision."""
    torch.manual_seed(0)
    flow = make_conditional(Affine(DIM), **condition) if condition else Affine(DIM)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Hierarchy([Stage(flow, 2, off_manifold_scale)]).double().eval()


@pytest.fixture
def gaussian():
    return linear(off_manifold_scale=0.5)


def closed_form(model, matrix, y, noise, dim=None, context=None):
    """Mean (batch, D) and covariance (D, D) of the posterior of a linear-Gaussian model."""
    latents = latents_of(model, dim, context)
    zero, axes = torch.zeros(1, latents.dim).double(), torch.eye(latents.dim).double()
    with torch.no_grad():
        mean = latents.decode(zero)[0]
        factor = (latents.decode(axes) - mean).T
    covariance = factor @ factor.T
    inner = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix)).double()
    gain = covariance @ matrix.T @ torch.linalg.inv(inner)
    return mean + (y - matrix @ mean) @ gain.T, covariance - gain @ matrix @ covariance


@pytest.fixture
def fitted(gaussian):
    """The linear-Gaussian model with a rough covariance of its data, which is used as metric."""
    latents, generator = latents_of(gaussian), torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = latents.decode(torch.randn(60, DIM, generator=generator).double()).numpy()
    gaussian.gaussian = Gaussian.fit(x[:40], x[40:]).to_tensors()
    return gaussian


def sampled(model, noise, dim=None):
    """A restoration, and the mean and the covariance of the posterior."""
    torch.manual_seed(1)
    matrix = torch.randn(4, DIM).double()
    y = (model.sample(2).double() @ matrix.T)[[0] * 16 + [1] * 16]
    found = restore(
        model,
        y,
        lambda x: x @ matrix.T,
        noise,
        dim=dim,
        iterations=90,
        generator=torch.Generator().manual_seed(0),
    )
    mean, covariance = closed_form(model, matrix, y, noise, dim)
    assert 0.5 < found.acceptance.mean() < 0.95
    assert found.r_hat.max() < 1.3
    deviations = (found.samples - mean).flatten(0, 1)
    largest = float(covariance.diagonal().max())
    np.testing.assert_allclose(deviations.T.cov(), covariance, atol=0.08 * largest)
    return found, mean, covariance


def test_samples_in_events_are_those_of_the_closed_form(fitted):
    found, mean, _ = sampled(fitted, 0.03)
    torch.testing.assert_close(found.image, mean, atol=1e-4, rtol=0)


def test_nonlinear_operators_are_sampled_in_latents(fitted, monkeypatch):
    targets, sample = [], restoration.sample
    monkeypatch.setattr(
        restoration, "sample", lambda *args: targets.append(args[0]) or sample(*args)
    )
    y = torch.full((2, DIM), 0.1).double()
    restore(fitted, y, lambda x: x.sin(), 0.03, iterations=6)
    restore(fitted, y, lambda x: 2 * x, 0.03, iterations=6)
    assert [type(target.gaussian) for target in targets] == [type(None), GaussianPosterior]


@pytest.mark.parametrize("dim", [None, 3])
def test_mode_and_mean_of_a_gaussian_model_are_those_of_the_closed_form(gaussian, dim):
    matrix, noise = torch.randn(4, DIM).double(), 0.03
    y = gaussian.sample(9).double() @ matrix.T
    found = restore(gaussian, y, lambda x: x @ matrix.T, noise, dim=dim, iterations=30)
    mean, _ = closed_form(gaussian, matrix, y, noise, dim)
    torch.testing.assert_close(found.mode, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.image, mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", [None, 3])
def test_samples_of_a_gaussian_model_are_those_of_the_closed_form(gaussian, dim):
    found, mean, covariance = sampled(gaussian, 0.3, dim)
    std = covariance.diagonal().sqrt()  # of 7,680 samples
    assert ((found.samples - mean).mean((0, 1)).abs() <= 0.06 * std + 1e-6).all()
    torch.testing.assert_close(found.image, found.samples.mean(0))
    torch.testing.assert_close(found.std, found.samples.std(0))


def test_conditional_models_restore_events_of_their_context():
    model = linear(classes=2)
    y = torch.zeros(2, 3).double()
    matrix = torch.eye(DIM)[:3].double()
    means = []
    for label in range(2):
        context = torch.tensor([label])
        found = restore(model, y, lambda x: x[:, :3], 0.03, iterations=6, context=context)
        means.append(closed_form(model, matrix, y, 0.03, context=context)[0])
        torch.testing.assert_close(found.image, means[-1], atol=1e-4, rtol=0)
    assert (means[0] - means[1]).abs().max() > 0.1
    with pytest.raises(UserError, match="context: expected one row for each of"):
        restore(model, y, lambda x: x[:, :3], 0.03)


def test_r_hat_compares_chains():
    samples = torch.randn(50, 4, 3, 1000, generator=torch.Generator().manual_seed(0))
    samples[:, :2, 1] += 1
    samples[:, ::2, 2] += 3
    # the variance between means of two pairs that differ by s is s^2 / 3
    expected = torch.tensor([1.0, 4 / 3, 4.0]).sqrt()
    torch.testing.assert_close(r_hat(samples), expected, atol=0.03, rtol=0)


@pytest.fixture(scope="module")
def model():
    return initialized_glow(smooth_images(256, 0), 16, steps=2)


def test_restorations_with_a_dimension_are_on_the_manifold(model):
    y = Superresolve(2)(torch.from_numpy(smooth_images(2, 1)).float() / 256)
    found = restore(model, y, Superresolve(2), 0.01, dim=5, iterations=6)
    points, at = found.mode - 0.5, model.at_dim(5)
    torch.testing.assert_close(at.encoder_projection(points), points, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(1, 5).double()}, r"y: expected .* of shape \(batch, 6\).*\(1, 5\)"),
        ({"noise": 0.0}, "noise: expected a number above 1e-18 and below 1e18, got 0"),
        ({"noise": 1e-300}, "noise: expected a number above 1e-18 and below 1e18, got 1e-300"),
        ({"noise": 1e300}, r"noise: expected a number above 1e-18 and below 1e18, got 1e\+300"),
        ({"operator": "denoise"}, "operator: expected a function of images, got str"),
        ({"dim": 7}, "dim: expected 1 to 6"),
        ({"iterations": 2}, "iterations: expected 3 or more, got 2"),
    ],
)
def test_mistakes(gaussian, change, message):
    arguments = {"y": torch.zeros(1, DIM).double(), "operator": Denoise(), "noise": 0.1} | change
    with pytest.raises(UserError, match=message):
        restore(gaussian, **arguments)


def test_chains_that_have_not_converged_are_a_warning(monkeypatch, caplog):
    """In latents, posteriors of small noise are too narrow after a few iterations."""
    model = linear()
    x = torch.zeros(3, DIM).double()
    for reduction, warned in ((1.05, False), (1.2, True)):
        reductions = torch.full((3,), reduction)
        monkeypatch.setattr(restoration, "r_hat", lambda _, values=reductions: values)
        restore(model, x, lambda x: x, 0.02, iterations=3, generator=torch.Generator())
        assert ("3 of 3 images have not converged" in caplog.text) is warned


def test_coverage_is_the_share_of_pixels_in_the_intervals_of_90_percent():
    x = torch.stack([torch.linspace(-3, 3, 6001), torch.zeros(6001)])
    restored = Restoration(torch.zeros(2, 6001), torch.ones(2, 6001), *[torch.empty(0)] * 4)
    quantile = 1.6449  # of 95% of the normal distribution
    np.testing.assert_allclose(coverage(restored, x), [quantile / 3, 1], atol=1e-3)
