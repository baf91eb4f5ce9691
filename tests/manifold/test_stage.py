import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from submanifold.errors import UserError
from submanifold.flows import Affine, Glow, RealNVP
from submanifold.manifold import Stage


def perturbed(flow, scale=0.1):
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn_like(p))
    return flow.double()


@st.composite
def stages(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        flow = Glow((draw(st.sampled_from([1, 3])), 4, 4), 2, 1, 3)
    else:
        flow = RealNVP(draw(st.integers(1, 8)), 3)
    stage = Stage(perturbed(flow), 1)
    stage.dim = draw(st.integers(1, stage.event_dim))
    return stage


@settings(max_examples=40, deadline=None, derandomize=True)
@given(stages())
def test_a_decoded_u_is_encoded_as_itself_with_nothing_off_the_manifold(stage):
    u = torch.randn(3, stage.dim, dtype=torch.float64)
    back, off = stage.encode(stage.decode(u))
    torch.testing.assert_close(back, u, rtol=0, atol=1e-8)
    torch.testing.assert_close(off, torch.zeros_like(off), rtol=0, atol=1e-8)
    assert off.shape == (3, stage.event_dim - stage.dim)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(stages())
def test_a_projection_projected_stays_and_u_with_v_gives_the_event_back(stage):
    x = torch.randn(3, *stage.flow.event_shape, dtype=torch.float64)
    once = stage.project(x)
    torch.testing.assert_close(stage.project(once), once, rtol=0, atol=1e-8)
    torch.testing.assert_close(stage.decode(*stage.encode(x)), x, rtol=0, atol=1e-8)
    moved = (once - x).abs().max() > 1e-6
    assert moved == (stage.dim < stage.event_dim)


@pytest.mark.parametrize("dim", [-1, 0, 5, 3072])
def test_a_dimension_that_does_not_fit_is_refused_with_what_is_allowed(dim):
    with pytest.raises(UserError, match=rf"dimension {dim} .*Allowed: 1 to 4.*stage_<n>\.dim"):
        Stage(Affine(4), dim)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_off_manifold_density_is_the_normal_of_its_scale(scale):
    stage = Stage(Affine(5), 2, off_manifold_scale=scale)
    v = torch.randn(7, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0, scale).log_prob(v).sum(1)
    torch.testing.assert_close(stage.off_manifold_log_prob(v), expected)
