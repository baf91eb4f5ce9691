"""Restorations, against the closed form of a linear-Gaussian model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from calibrated import smooth_images
from strategies import initialized_glow
from submanifold.common.errors import UserError
from submanifold.flows import Affine, conditioning, make_conditional
from submanifold.inverse import Denoise, Superresolve, Task, linear, restoration, restore
from submanifold.inverse.comparison import restore_by_label
from submanifold.inverse.gaussian import Gaussian
from submanifold.inverse.latents import latents_of
from submanifold.inverse.linear import Ensemble, GaussianPosterior
from submanifold.inverse.posterior import EventPosterior, Posterior
from submanifold.inverse.sampler import r_hat
from submanifold.models import Hierarchy, Mixture, Stage

DIM = 6


@pytest.fixture
def gaussian():
    """A linear-Gaussian model in double precision, whose off-manifold density has sigma_v = 0.5."""
    torch.manual_seed(0)
    flow = Affine(DIM)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Hierarchy([Stage(flow, dim=2, off_manifold_scale=0.5)]).double().eval()


def prior(model, dim=None):
    """Mean and covariance of the model, or of its manifold."""
    latents = latents_of(model, dim)
    zero, axes = torch.zeros(1, latents.dim).double(), torch.eye(latents.dim).double()
    with torch.no_grad():
        mean = latents.decode(zero)[0]
        factor = (latents.decode(axes) - mean).T
    return mean, factor @ factor.T


def conditional(classes):
    """A linear-Gaussian model in double precision that is conditional on a label."""
    torch.manual_seed(0)
    flow = make_conditional(Affine(DIM), classes=classes)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Hierarchy([Stage(flow, dim=2)]).double().eval()


def closed_form(model, matrix, y, noise, dim=None):
    """Mean (batch, D) and covariance (D, D) of the posterior of a linear-Gaussian model."""
    mean, covariance = prior(model, dim)
    inner = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix)).double()
    gain = covariance @ matrix.T @ torch.linalg.inv(inner)
    return mean + (y - matrix @ mean) @ gain.T, covariance - gain @ matrix @ covariance


def test_latents_have_the_density_of_the_model(gaussian):
    mean, covariance = prior(gaussian)
    x = torch.randn(5, DIM).double()
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    torch.testing.assert_close(gaussian.log_prob(x), expected)
    latents = latents_of(gaussian)
    torch.testing.assert_close(latents.decode(latents.encode(x)), x)


@pytest.fixture
def fitted(gaussian):
    """The linear-Gaussian model with a rough covariance of its data, which is used as metric."""
    latents, generator = latents_of(gaussian), torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = latents.decode(torch.randn(60, DIM, generator=generator).double()).numpy()
    gaussian.gaussian = Gaussian.fit(x[:40], x[40:]).to_tensors()
    return gaussian


def test_samples_in_events_are_those_of_the_closed_form(fitted):
    matrix, noise = torch.randn(4, DIM).double(), 0.03
    x = fitted.sample(2).double()
    y = (x @ matrix.T)[[0] * 16 + [1] * 16]
    found = restore(fitted, y, lambda x: x @ matrix.T, noise, iterations=90,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    mean, covariance = closed_form(fitted, matrix, y, noise)
    torch.testing.assert_close(found.image, mean, atol=1e-4, rtol=0)
    assert 0.5 < found.acceptance.mean() < 0.95
    assert found.r_hat.max() < 1.3
    deviations = (found.samples - mean).flatten(0, 1)
    std = covariance.diagonal().sqrt()
    np.testing.assert_allclose(deviations.T.cov(), covariance, atol=0.08 * float(std.max()) ** 2)


@pytest.mark.parametrize("noise", [0.001, 0.05])
def test_chains_start_with_the_contrast_of_the_observation(fitted, monkeypatch, noise):
    starts = []

    def sampler(target, x, chains, *_):
        starts.append(target.decode(x).view(chains, -1, DIM))
        return sample(target, x, chains, *_)

    sample = restoration.sample
    monkeypatch.setattr(restoration, "sample", sampler)
    mean, _ = prior(fitted)
    deviation = 2 * prior(fitted)[1].diagonal().sqrt()[None]
    y = (mean + torch.cat([deviation, deviation / 64]))[:, :4]
    generator = torch.Generator().manual_seed(0)
    restore(fitted, y, lambda x: x[:, :4], noise, iterations=3, generator=generator)
    std = starts[0][..., 4:].std(0).mean(1)
    assert std[1] < std[0] / 3


def test_nonlinear_operators_are_sampled_in_latents(fitted, monkeypatch):
    targets = []
    sample = restoration.sample
    monkeypatch.setattr(
        restoration, "sample", lambda *args: targets.append(args[0]) or sample(*args)
    )
    y = torch.full((2, DIM), 0.1).double()
    restore(fitted, y, lambda x: x.sin(), 0.03, iterations=6)
    restore(fitted, y, lambda x: 2 * x, 0.03, iterations=6)
    assert [type(target) for target in targets] == [Posterior, EventPosterior]


def test_estimates_do_not_depend_on_a_model_whose_samples_are_far_from_the_data(fitted):
    latents = latents_of(fitted)
    far = replace(latents, decode=lambda z: 1e9 * latents.decode(z))
    generator, noise = torch.Generator().manual_seed(0), 0.5
    y = fitted.sample(8).double()
    found = Ensemble(far, Denoise(), noise, y, generator).estimate(y)
    expected = GaussianPosterior(latents.gaussian, Denoise(), noise).estimate(y)
    assert (found - expected).abs().max() < 0.15 * expected.std()


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
    matrix, noise = torch.randn(4, DIM).double(), 0.3
    x = gaussian.sample(2).double()
    y = (x @ matrix.T)[[0] * 16 + [1] * 16]
    found = restore(gaussian, y, lambda x: x @ matrix.T, noise, dim=dim, iterations=90,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    mean, covariance = closed_form(gaussian, matrix, y, noise, dim)
    assert 0.5 < found.acceptance.mean() < 0.95
    assert found.r_hat.max() < 1.3
    deviations = (found.samples - mean).flatten(0, 1)
    std = covariance.diagonal().sqrt()
    # 7,680 samples
    assert (deviations.mean(0).abs() <= 0.06 * std + 1e-6).all()
    np.testing.assert_allclose(deviations.T.cov(), covariance, atol=0.08 * float(std.max()) ** 2)
    torch.testing.assert_close(found.image, found.samples.mean(0))
    torch.testing.assert_close(found.std, found.samples.std(0))


def test_conditional_models_restore_events_of_their_context():
    model = conditional(2)
    y = torch.zeros(2, 3).double()
    matrix = torch.eye(DIM)[:3].double()
    means = []
    for label in range(2):
        with conditioning(model, torch.tensor([label])):
            found = restore(model, y, lambda x: x[:, :3], 0.03, iterations=6)
            means.append(closed_form(model, matrix, y, 0.03)[0])
        torch.testing.assert_close(found.image, means[-1], atol=1e-4, rtol=0)
    assert (means[0] - means[1]).abs().max() > 0.1
    with pytest.raises(UserError, match="context: expected one row for each event"):
        restore(model, y, lambda x: x[:, :3], 0.03)


def test_observations_are_restored_given_their_labels():
    model = conditional(3)
    y, labels = torch.randn(5, 3).double(), np.array([2, 0, 2, 1, 0])
    matrix = torch.eye(DIM)[:3].double()
    task = Task("first", lambda x: x[:, :3], 0.03)
    found = restore_by_label(model, y, task, labels)
    for number, label in enumerate(labels):
        with conditioning(model, torch.tensor([label])):
            mean, _ = closed_form(model, matrix, y[number : number + 1], 0.03)
        torch.testing.assert_close(found.image[number], mean[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.samples[:, number].mean(0), found.image[number])


def test_r_hat_compares_chains():
    samples = torch.randn(50, 4, 3, 1000, generator=torch.Generator().manual_seed(0))
    samples[:, :2, 1] += 1
    samples[:, ::2, 2] += 3
    # the variance between means of two pairs that differ by s is s^2 / 3
    expected = torch.tensor([1.0, 4 / 3, 4.0]).sqrt()
    torch.testing.assert_close(r_hat(samples), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("count", [3, 2000])
def test_linear_estimate_approaches_the_closed_form(gaussian, count):
    matrix, noise = torch.randn(count, DIM).double(), 0.5
    latents = latents_of(gaussian)
    ensemble = Ensemble(latents, lambda x: x @ matrix.T, noise, matrix, None)
    y = gaussian.sample(8).double() @ matrix.T
    expected, _ = closed_form(gaussian, matrix, y, noise)
    scale = prior(gaussian)[1].diagonal().max().sqrt()
    assert (ensemble.estimate(y) - expected).abs().max() < 0.15 * scale


@pytest.mark.parametrize("count", [3, 1100])
def test_deviations_have_the_covariance_of_the_closed_form(gaussian, count, monkeypatch):
    monkeypatch.setattr(linear, "ENSEMBLE", 1024)
    matrix, noise = torch.randn(count, DIM).double(), 0.5
    ensemble = Ensemble(latents_of(gaussian), lambda x: x @ matrix.T, noise, matrix, None)
    found = ensemble.draw(4000)
    _, expected = closed_form(gaussian, matrix, torch.zeros(1, count).double(), noise)
    torch.testing.assert_close(found.T.cov(), expected, atol=0.1 * float(expected.max()), rtol=0)


def test_gradient_is_that_of_the_energy(gaussian):
    posterior = Posterior(
        latents_of(gaussian), lambda x: (x**2)[:, :3], torch.ones(4, 3).double(), 0.1
    )
    z = torch.randn(4, DIM).double().requires_grad_()
    residual = (posterior.observe(z) - 1) / 0.1
    energy = (residual.square().sum(1) + z.square().sum(1)) / 2
    torch.testing.assert_close(posterior.energy(z), energy.detach())
    (expected,) = torch.autograd.grad(energy.sum(), z)
    torch.testing.assert_close(posterior.gradient(z), expected)


def test_the_mode_of_a_nonlinear_operator_has_less_energy(gaussian):
    posterior = Posterior(latents_of(gaussian), lambda x: x.exp(), torch.ones(4, DIM).double(), 0.1)
    z = torch.randn(4, DIM).double()
    found = posterior.mode(z)
    assert (posterior.energy(found) < posterior.energy(z)).all()
    assert posterior.gradient(found).abs().max() < 0.1


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_operators_without_forward_mode_have_samples_but_no_mode(gaussian):
    found = restore(gaussian, torch.zeros(1, DIM).double(), NoForwardMode.apply, 0.01, iterations=6)
    assert found.mode is None
    assert found.samples.shape == (16, 1, DIM)


@pytest.fixture(scope="module")
def model():
    return initialized_glow(smooth_images(256, 0), 16, steps=2)


def test_batches_are_restored_reproducibly(model):
    y = torch.from_numpy(smooth_images(40, 1)).float() / 256
    found, again = (
        restore(model, y, Denoise(), 0.1, iterations=6,
                generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )  # fmt: skip
    assert found.image.shape == found.std.shape == y.shape
    assert found.samples.shape == (16, *y.shape), "40 images are two batches"
    assert found.samples.min() >= 0
    assert found.samples.max() <= 1
    assert torch.equal(found.image, again.image)


def test_restorations_with_a_dimension_are_on_the_manifold(model):
    y = Superresolve(2)(torch.from_numpy(smooth_images(2, 1)).float() / 256)
    found = restore(model, y, Superresolve(2), 0.01, dim=5, iterations=6)
    points, at = found.mode - 0.5, model.at_dim(5)
    torch.testing.assert_close(at.encoder_projection(points), points, atol=1e-3, rtol=0)


def test_objects_of_deepinv_bring_their_operator_and_noise(gaussian):
    class Physics:
        noise_model = type("Noise", (), {"sigma": torch.tensor(0.1)})

        def A(self, x):  # noqa: N802
            return x[:, :2]

    y = torch.zeros(1, 2).double()
    found, expected = (
        restore(gaussian, y, *arguments, iterations=6, generator=torch.Generator().manual_seed(0))
        for arguments in ([Physics()], [lambda x: x[:, :2], 0.1])
    )
    torch.testing.assert_close(found.image, expected.image)


@pytest.mark.parametrize(("change", "message"), [
    ({"y": torch.zeros(1, 5).double()}, r"y: expected .* of shape \(batch, 6\).*\(1, 5\)"),
    ({"y": torch.zeros(1, DIM)}, "y: expected torch.float64 .* got torch.float32"),
    ({"noise": 0.0}, "noise: expected a number above 0, got 0"),
    ({"noise": None}, "noise: expected a number above 0, got None"),
    ({"operator": "denoise"}, "operator: expected a function of images, got str"),
    ({"dim": 7}, "dim: expected 1 to 6"),
    ({"iterations": 2}, "iterations: expected 3 or more, got 2"),
])  # fmt: skip
def test_mistakes(gaussian, change, message):
    arguments = {"y": torch.zeros(1, DIM).double(), "operator": Denoise(), "noise": 0.1} | change
    with pytest.raises(UserError, match=message):
        restore(gaussian, **arguments)


def test_models_with_charts_are_refused(gaussian):
    with pytest.raises(UserError, match="model: expected a hierarchy, got a mixture"):
        restore(Mixture([gaussian]), torch.zeros(1, DIM).double(), Denoise(), 0.1)
