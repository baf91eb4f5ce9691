"""Gaussianization flows: initialization, tails, and the derivative of the inverse."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from submanifold.flows import MixtureOfLogistics, initialize

TWO_PEAKS = np.random.default_rng(0).normal(np.repeat([-2.0, 1.0], [3000, 7000]), 0.4)


def test_initialized_mixture_has_the_density_of_the_data():
    x = torch.from_numpy(TWO_PEAKS[:, None])
    mixture = MixtureOfLogistics(1, 16).double()
    initialize(mixture, x)
    z, log_det = mixture(x)
    assert kstest(z[:, 0].detach().numpy(), "norm").statistic < 0.02
    log_prob = log_det - 0.5 * (z[:, 0].square() + math.log(2 * math.pi))
    each = [w * np.exp(-0.5 * ((TWO_PEAKS - m) / 0.4) ** 2) for w, m in ((0.3, -2.0), (0.7, 1.0))]
    exact = np.log(sum(each) / (0.4 * math.sqrt(2 * math.pi)))
    assert abs(exact.mean() - log_prob.mean().item()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [30.0, 200.0])
def test_tails_are_invertible(dtype, far):
    mixture = MixtureOfLogistics(2, 3).to(dtype)
    x = torch.tensor([[-far, far], [far, 0.0]], dtype=dtype)
    z, log_det = mixture(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    torch.testing.assert_close(mixture.inverse(z), x, rtol=1e-4, atol=1e-4)


def test_inverse_finds_quantiles_between_two_narrow_clusters():
    """Newton's steps leave the bracket there, and even within it take more than 16 iterations."""
    torch.manual_seed(0)
    clusters = torch.cat([0.01 * torch.randn(500, 1) + middle for middle in (-10, 10)]).double()
    mixture = MixtureOfLogistics(1, 8).double()
    initialize(mixture, clusters)
    positive = torch.logspace(-16, 0.9, 100, dtype=torch.float64)[:, None]
    z = torch.cat([-positive.flip(0), positive])
    with torch.no_grad():
        torch.testing.assert_close(mixture(mixture.inverse(z))[0], z, rtol=0, atol=1e-12)
        middle = mixture.inverse(mixture(clusters)[0])
    torch.testing.assert_close(middle, clusters, rtol=0, atol=1e-12)
