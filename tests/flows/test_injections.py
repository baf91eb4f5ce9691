"""Trumpets and autoencoders: their initialization, and what they learn from known distributions."""

import numpy as np
import pytest
import torch

from submanifold.data.synthetic import LinearGaussian
from submanifold.flows import Autoencoder, Trumpet, initialize


def reconstruction_error(flow, x):
    return (flow.inverse(flow(x)[0]) - x).square().mean()


@pytest.mark.parametrize("flow", [Trumpet, Autoencoder])
def test_initialization_is_principal_component_analysis(flow):
    torch.manual_seed(0)
    x = torch.from_numpy(LinearGaussian().sample(4000, np.random.default_rng(0)))
    flow = flow((8,), 3).double()
    initialize(flow, x)
    best = torch.linalg.svdvals(x - x.mean(0))[3:].square().sum() / x.numel()
    assert reconstruction_error(flow, x) < 1.001 * best
    u = flow(x)[0]
    torch.testing.assert_close(u.T.cov(), torch.eye(3).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(u.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)
