import numpy as np
import pytest
import torch

from strategies import affine
from submanifold.flows import Affine, RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.models.diagnostics import (
    inverse_error,
    is_overfitted,
    manifold_overfitting,
    neighbour_correlation,
)


class Lossy(Affine):
    """A map whose inverse has an error of 0.1 in one element."""

    def forward(self, x, context=None):
        return x, x.new_zeros(len(x))

    def inverse(self, z, context=None):
        z = z.clone()
        z[3, 1] -= 0.1
        return z


def test_the_inverse_error_is_the_largest_relative_error():
    x = 5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    assert inverse_error(Hierarchy([Stage(Lossy(2), 1)]), x) == pytest.approx(0.02, rel=0.05)
    assert inverse_error(Hierarchy([Stage(RealNVP(2), 1)]), x) < 1e-6


def test_neighbour_correlation_detects_smooth_functions_but_not_noise():
    rng = np.random.default_rng(0)
    u = torch.from_numpy(rng.uniform(-1, 1, (2000, 1)))
    smooth = torch.cat([torch.sin(9 * u), torch.exp(u)], 1)
    noise = torch.from_numpy(rng.standard_normal((2000, 2)))
    assert neighbour_correlation(u, smooth) > 0.99
    # neighbours come in pairs: the standard error is that of 2 x 1,000 independent products
    assert abs(neighbour_correlation(u, noise)) < 4 / 2000**0.5
    half = neighbour_correlation(u, torch.sin(9 * u) + noise[:, :1] * 0.5**0.5)
    assert half == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("noise", "overfitted"), [(0.0, True), (0.01, False), (0.1, False)])
def test_a_curve_is_overfitted_only_without_noise(noise, overfitted):
    rng = np.random.default_rng(0)
    t = rng.standard_normal(2000)
    # an affine flow can only take the line for the manifold: a misfit of 1% of the spread
    x = np.stack([3 * t, 0.01 * np.sin(4 * t)], 1) + noise * rng.standard_normal((2000, 2))
    torch.manual_seed(0)
    flow = affine(torch.tensor([[1 / 3, 0.0], [0.0, 100.0]]))
    found = manifold_overfitting(Hierarchy([Stage(flow, 1)]).double(), torch.from_numpy(x))
    assert is_overfitted(*found) == overfitted
    distance = np.median(np.abs(x[:, 1])) / x.std(ddof=1)
    assert found[0] == pytest.approx(distance, rel=0.02)


def test_a_poor_fit_is_not_overfitting():
    t = np.random.default_rng(0).standard_normal(2000)
    x = torch.from_numpy(np.stack([t, np.sin(2 * t)], 1))
    model = Hierarchy([Stage(affine(torch.eye(2)), 1)]).double()
    found = manifold_overfitting(model, x)
    assert found[1] > 0.5
    assert not is_overfitted(*found)
