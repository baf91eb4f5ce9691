"""Gaussianization flows: initialization, tails, and the derivative of the inverse."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from strategies import perturb
from submanifold.data.synthetic import Circle
from submanifold.flows import Gaussianization, MixtureOfLogistics, initialize

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


def test_initialization_fits_a_density_before_training():
    """Each layer brings the data nearer to N(0, I); one normal density is 0.7 nats away."""
    torch.manual_seed(0)
    ring = Circle(noise=0.1)
    x = torch.from_numpy(ring.sample(4000, np.random.default_rng(0)))
    truth = ring.log_prob(x.numpy()).mean()
    lost = []
    for layers in (1, 8, 24):
        flow = Gaussianization(2, layers, components=24).double()
        initialize(flow, x[:2000])
        z, log_det = flow(x[2000:])
        log_prob = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        lost.append(truth - log_prob.mean().item())
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < 0.35


def test_trained_flow_has_the_density_of_a_circle():
    """docs/evidence/known-answers.md: couplings of vectors stay 0.056 nats above."""
    torch.manual_seed(0)
    ring, rng = Circle(noise=0.1), np.random.default_rng(0)
    x, test = (torch.from_numpy(ring.sample(n, rng)).float() for n in (150 * 512, 5000))
    flow = Gaussianization(2, layers=6, components=8)
    initialize(flow, x[:512])

    def nll(x):
        z, log_det = flow(x)
        return (0.5 * (z.square() + math.log(2 * math.pi)).sum(1) - log_det).mean()

    optimizer = torch.optim.Adam(flow.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 150)
    for batch in x.split(512):
        optimizer.zero_grad()
        nll(batch).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        excess = nll(test).item() + ring.log_prob(test.double().numpy()).mean()
    assert excess < 0.03


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


def test_inverse_has_the_gradient_of_the_implicit_function():
    torch.manual_seed(0)
    flow = perturb(Gaussianization(3, 2, 4)).double()
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = [*flow.parameters()]

    def loss():
        return flow.inverse(z).sin().sum()

    gradients = torch.autograd.grad(loss(), [z, *parameters])
    for tensor, gradient in zip([z, *parameters], gradients, strict=True):
        entry = tuple(0 for _ in tensor.shape)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                tensor[entry] += step
                ends.append(loss().item())
                tensor[entry] -= step
        assert gradient[entry].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)
