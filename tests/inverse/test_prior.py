"""A model as a prior of deepinv."""

import pytest
import torch

from calibrated import smooth_images
from strategies import initialized_glow

deepinv = pytest.importorskip("deepinv")


@pytest.fixture(scope="module")
def model():
    return initialized_glow(smooth_images(256, 0), 16, steps=2)


@pytest.fixture
def x():
    return torch.from_numpy(smooth_images(2, 1)).float() / 256


def test_prior_is_minus_the_log_density(model, x):
    from submanifold.inverse.prior import Prior

    prior = Prior(model)
    assert isinstance(prior, deepinv.optim.Prior)
    torch.testing.assert_close(prior(x), -model.log_prob(x - 0.5))
    step = 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    change = (prior(x + step) - prior(x - step)) / 2
    expected = (prior.grad(x) * step).flatten(1).sum(1)
    torch.testing.assert_close(change, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(prior.score(x), -prior.grad(x))


def test_physics_of_deepinv_are_operators(model, x):
    from submanifold.inverse import restore

    mask = torch.ones(1, 3, 8, 8)
    mask[..., 3:5, 3:5] = 0
    noise = deepinv.physics.GaussianNoise(0.05)
    physics = deepinv.physics.Inpainting((3, 8, 8), mask=mask, noise_model=noise)
    found = restore(model, physics(x), physics, iterations=6)
    assert found.image.shape == x.shape
