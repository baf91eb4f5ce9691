"""Conformal embeddings: volume, spheres, and discontinuities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import perturb
from submanifold.flows import initialize
from submanifold.flows.conformal import Conformal

SHAPES = [(1,), (2,), (5,), (3, 8, 8), (1, 6, 6)]


@st.composite
def conformals(draw):
    """An initialized and perturbed flow, and latents."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from(SHAPES))
    dim = draw(st.integers(1, min(math.prod(shape), 7)))
    reflections = draw(st.none() | st.integers(1, 20))
    flow = Conformal(shape, dim, draw(st.integers(0, 4)), reflections).double()
    initialize(flow, 3 * torch.randn(32, *shape, dtype=torch.float64) + 1)
    torch.nn.init.normal_(perturb(flow).special_conformal.weight)
    return flow, torch.randn(4, dim, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(conformals())
def test_jacobian_is_a_scaled_isometry_of_the_returned_volume(case):
    flow, u = case
    _, volume = flow(flow.inverse(u))
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda v: flow.inverse(v[None]).flatten()))(u)
    gram = jacobian.mT @ jacobian
    torch.testing.assert_close(volume, -0.5 * torch.linalg.slogdet(gram)[1], rtol=0, atol=1e-6)
    relative = gram / gram[:, :1, :1]
    isometric = torch.eye(flow.dim, dtype=gram.dtype).expand_as(gram)
    torch.testing.assert_close(relative, isometric, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 2])
def test_sphere_is_the_stereographic_projection(dim):
    """With w = n e on the unused axis e, g(u) = (u + |u|^2 e) / (1 + |u|^2), of radius 1/2."""
    n = dim + 1
    flow = Conformal((n,), dim, layers=0).double()
    with torch.no_grad():
        flow.axes_of_plane.vectors.zero_()
        flow.axes_of_plane.vectors[:, :dim] = torch.eye(dim)  # they only change signs
        flow.special_conformal.weight[-1] = n
    u = torch.randn(7, dim, dtype=torch.float64)
    x = flow.inverse(u)
    below = 1 + u.square().sum(1, keepdim=True)
    expected = torch.cat([-u, u.square().sum(1, keepdim=True)], 1) / below
    torch.testing.assert_close(x, expected)
    centre = torch.tensor([0.0] * dim + [0.5], dtype=torch.float64)
    torch.testing.assert_close((x - centre).norm(dim=1), torch.full((7,), 0.5).double())
    torch.testing.assert_close(flow(x)[1], dim * below[:, 0].log())


def test_initialization_is_the_plane_of_the_principal_components():
    torch.manual_seed(0)
    x = torch.randn(300, 1, 4, 4, dtype=torch.float64).cumsum(2).cumsum(3)
    flow = Conformal((1, 4, 4), 5).double()
    initialize(flow, x)
    with torch.no_grad():
        u, _ = flow(x)
        lost = (flow.inverse(u) - x).flatten(1).square().sum(1).mean()
    variances = torch.linalg.eigvalsh(torch.cov(x.flatten(1).T, correction=0))
    torch.testing.assert_close(lost, variances[:-5].sum())
    assert u.square().mean().item() == pytest.approx(1)
    assert not any(getattr(module, "uninitialized", False) for module in flow.modules())
