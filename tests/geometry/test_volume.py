import math
from functools import partial

import pytest
import torch

from strategies import perturb
from submanifold.flows import Affine, Glow, RealNVP, Trumpet
from submanifold.geometry.linearization import jacobian
from submanifold.geometry.volume import estimate_log_volume, log_volume
from submanifold.models import Hierarchy, Stage, manifold_density


def hierarchy_of(*stages):
    """A perturbed hierarchy of (flow, dim) pairs in double precision."""
    torch.manual_seed(0)
    return perturb(Hierarchy([Stage(flow(), dim) for flow, dim in stages]), 0.3).double()


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reverse_mode_jacobian(decode, u):
    compute = torch.autograd.functional.jacobian
    return torch.stack([compute(lambda e: decode(e[None])[0].flatten(), e) for e in u])


SMALL_GLOW = partial(Glow, (3, 4, 4), 2, 2, 4)
CASES = {
    "glow": [(SMALL_GLOW, 10)],
    "affine": [(partial(Affine, 7), 3)],
    "one dimension": [(partial(RealNVP, 5), 1)],
    "three stages": [(SMALL_GLOW, 20), (partial(RealNVP, 20), 8), (partial(Affine, 8), 3)],
}


@pytest.mark.parametrize("name", CASES)
def test_jacobians_and_volumes_equal_those_of_reverse_mode(name):
    hierarchy = hierarchy_of(*CASES[name])
    u = normal(3, hierarchy.dim)
    expected = reverse_mode_jacobian(hierarchy.decode, u)
    for batch_size in (None, 1, 8):
        found = jacobian(hierarchy.decode, u, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    directions = normal(3, 2, hierarchy.dim)
    found = jacobian(hierarchy.decode, u, directions)
    torch.testing.assert_close(found, expected @ directions.mT, rtol=0, atol=1e-10)
    volume = torch.linalg.svdvals(expected).log().sum(1)
    torch.testing.assert_close(log_volume(hierarchy.decode, u), volume, rtol=0, atol=1e-10)
    # the quadrature is exact with as many nodes as dimensions
    estimate, error = estimate_log_volume(hierarchy.decode, u, 20, generator=torch.Generator())
    assert ((estimate - volume).abs() <= 5 * error + 1e-10).all()


@pytest.mark.parametrize("flow", [SMALL_GLOW, partial(RealNVP, 6), partial(Affine, 5)])
def test_a_manifold_of_full_dimension_has_the_density_of_the_space(flow):
    hierarchy = hierarchy_of((flow, math.prod(flow().event_shape)))
    x = hierarchy.decode(normal(4, hierarchy.dim)).detach()
    u, _, log_det = hierarchy.stages[0](x)
    volume = log_volume(hierarchy.decode, u)
    torch.testing.assert_close(-volume, log_det.detach(), rtol=0, atol=1e-9)
    value, error, _ = manifold_density(hierarchy, x)
    torch.testing.assert_close(value, hierarchy.log_prob(x).detach(), rtol=0, atol=1e-9)
    assert not error.any()


def test_an_injection_of_all_dimensions_has_a_density_on_its_manifold():
    torch.manual_seed(0)
    hierarchy = Hierarchy([Stage(Trumpet((4,), 4), 4)]).double()
    x = hierarchy.decode(normal(3, 4)).detach()
    u = hierarchy.encode(x)[0]
    expected = hierarchy.code_log_prob(u) - log_volume(hierarchy.decode, u)
    found = manifold_density(hierarchy, x).log_prob
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-9)


def test_the_density_on_the_manifold_is_that_of_the_projection():
    hierarchy = hierarchy_of(*CASES["three stages"])
    x = normal(3, 3, 4, 4)
    found, projected = (
        manifold_density(hierarchy, each) for each in (x, hierarchy.encoder_projection(x))
    )
    torch.testing.assert_close(found, projected, rtol=0, atol=1e-8)
    u = hierarchy.encode(x)[0]
    expected = hierarchy.code_log_prob(u) - log_volume(hierarchy.decode, u)
    torch.testing.assert_close(found.log_prob, expected.detach(), rtol=0, atol=1e-10)
    columns = reverse_mode_jacobian(hierarchy.decode, u).square().sum(1).log().sum(1) / 2
    excess = (columns - log_volume(hierarchy.decode, u)) / (3 * math.log(2))
    torch.testing.assert_close(found.non_orthogonality, excess, rtol=0, atol=1e-10)


def test_a_uniform_sphere_has_its_density():
    """Normal coordinates are mapped to uniform ones, and these to a uniform point of the sphere."""

    def decode(u):
        w = torch.special.ndtr(u)
        height, angle = 2 * w[:, 0] - 1, 2 * math.pi * w[:, 1]
        radius = (1 - height**2).sqrt()
        return torch.stack([radius * angle.cos(), radius * angle.sin(), height], 1)

    u = normal(50, 2)
    log_prob = -0.5 * (u.square() + math.log(2 * math.pi)).sum(1) - log_volume(decode, u)
    torch.testing.assert_close(log_prob.exp(), torch.full((50,), 1 / (4 * math.pi)).double())


def test_estimates_are_unbiased_with_the_stated_standard_error():
    hierarchy = hierarchy_of((partial(Glow, (3, 8, 8), 2, 1, 4), 48))
    u = normal(48, 48)
    generator = torch.Generator().manual_seed(0)
    estimate, error = estimate_log_volume(hierarchy.decode, u, 10, 15, generator)
    deviation = estimate - log_volume(hierarchy.decode, u)
    assert 0.1 < error.mean() < 2
    # the mean of 48 events with independent probes
    assert deviation.mean().abs() < 4 * error.square().mean().sqrt() / math.sqrt(48)
    # Student's t with 9 degrees of freedom has standard deviation 1.13
    assert 0.85 < (deviation / error).square().mean().sqrt() < 1.4


@pytest.mark.parametrize("compute", [log_volume, lambda *case: estimate_log_volume(*case, 2)[0]])
def test_events_that_are_not_finite_do_not_affect_others(compute):
    u = normal(3, 4)
    u[1] = torch.nan
    decode = hierarchy_of((partial(RealNVP, 6), 4)).decode
    assert compute(decode, u).isfinite().tolist() == [True, False, True]
