"""Noisy injective flows: a hierarchy whose inner stages act on noisy coordinates."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from strategies import assert_close, perturb
from submanifold.flows import Affine
from submanifold.losses import Loss, draws, encode
from submanifold.models import Hierarchy, Stage

SIGMA, OFF = 1.0, 0.3


def affine(noise=SIGMA):
    torch.manual_seed(0)
    stages = [Stage(Affine(5), 2, OFF), Stage(Affine(2), 2, noise=noise)]
    return perturb(Hierarchy(stages).double(), 0.5)


def exact(model, x):
    """The density of x = affine(code + noise), with deviations SIGMA on the code and OFF off it."""
    outer, inner = (stage.flows[0] for stage in model.stages)
    eye = torch.eye(2, dtype=x.dtype)
    columns = inner.inverse(eye) - inner.inverse(0 * eye)
    mean = torch.cat([inner.inverse(0 * eye)[0], x.new_zeros(3)])
    noise = torch.diag(torch.tensor([SIGMA**2] * 2 + [OFF**2] * 3).double())
    covariance = noise + torch.block_diag(columns.T @ columns, torch.zeros(3, 3).double())
    z, log_det = outer(x)
    return MultivariateNormal(mean, covariance).log_prob(z) + log_det


def test_the_density_is_the_mean_over_the_noise():
    model, x = affine(), torch.randn(6, 5).double()
    assert model.log_prob(x).sub(exact(model, x)).abs().max() < 0.1
    assert affine(0.0).log_prob(x).sub(exact(model, x)).abs().max() > 0.2, "noise matters here"


@pytest.mark.parametrize("dim", [1, 3])
def test_at_dim_keeps_the_noise(dim):
    torch.manual_seed(0)
    model = Hierarchy([Stage(Affine(5), 4, OFF), Stage(Affine(4), 2, noise=SIGMA)]).double()
    x = torch.randn(6, 5).double()
    other = perturb(model, 0.5).at_dim(dim)
    assert type(other) is Hierarchy
    assert [stage.noise for stage in other.stages] == [0, SIGMA]
    assert_close(other.log_prob(x), model.log_prob(x))


def test_training_draws_the_noise_from_its_generator():
    model, x = affine(), torch.randn(6, 5).double()
    losses = [
        Loss()(encode(model, x, draws(x, torch.Generator().manual_seed(seed))))["loss"].item()
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
