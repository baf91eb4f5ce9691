"""Trumpets and autoencoders: their initialization, and what they learn from known distributions."""

import pytest
import torch

from submanifold.flows import Autoencoder, Trumpet, initialize

VARIANCES = torch.tensor([4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025], dtype=torch.float64)


def reconstruction_error(flow, x):
    return (flow.inverse(flow(x)[0]) - x).square().mean()


def linear_gaussian(samples):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    z = torch.randn(samples, 8, generator=generator, dtype=torch.float64)
    return z * VARIANCES.sqrt() @ axes


@pytest.mark.parametrize("flow", [Trumpet, Autoencoder])
def test_initialization_is_principal_component_analysis(flow):
    torch.manual_seed(0)
    x = linear_gaussian(4000)
    flow = flow((8,), 3).double()
    initialize(flow, x)
    best = torch.linalg.svdvals(x - x.mean(0))[3:].square().sum() / x.numel()
    assert reconstruction_error(flow, x) < 1.001 * best
    u = flow(x)[0]
    torch.testing.assert_close(u.T.cov(), torch.eye(3).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(u.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
