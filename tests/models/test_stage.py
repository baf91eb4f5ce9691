import pytest
import torch
from hypothesis import given, settings
from scipy.stats import norm

from strategies import assert_close, hierarchies
from submanifold.common.errors import UserError
from submanifold.flows import Affine, RealNVP
from submanifold.models import Stage


@settings(max_examples=40, deadline=None, derandomize=True)
@given(hierarchies(dtypes=[torch.float64], most_stages=1))
def test_decoding_inverts_encoding_and_projections_are_idempotent(case):
    stage, x = case[0].stages[0], case[1]
    u, v, _ = stage(x)
    assert (u.shape[1], v.shape[1]) == (stage.dim, stage.event_dim - stage.dim)
    assert_close(stage.decode(u, v), x)
    once = stage.decode(u)
    again, off, _ = stage(once)
    assert_close(torch.cat([again, off], 1), torch.cat([u, torch.zeros_like(v)], 1))
    assert ((once - x).abs().max() > 1e-6) == (stage.dim < stage.event_dim)


@pytest.mark.parametrize("dim", [-1, 0, 5, 3072])
def test_a_dimension_out_of_range_is_refused(dim):
    with pytest.raises(UserError, match=rf"^dim: expected 1 to 4, .*, got {dim}"):
        Stage(Affine(4), dim)


def test_several_flows_are_composed_and_rebuilt_from_the_config():
    torch.manual_seed(0)
    first, second = RealNVP(5, 2, 8), Affine(5)
    stage, x = Stage([first, second], 2), torch.randn(7, 5)
    z, log_det = first(x)
    w, more = second(z)
    u, v, both = stage(x)
    assert_close(torch.cat([u, v], 1), w)
    assert_close(both, log_det + more)
    assert_close(stage.decode(u, v), x)
    assert [each["type"] for each in stage.config["bijections"]] == ["realnvp", "affine"]
    again = Stage.from_config(**stage.config)
    again.load_state_dict(stage.state_dict())
    assert_close(again(x)[0], u)


def test_flows_with_different_dimensions_are_refused():
    with pytest.raises(UserError, match=r"expected .* shape \(5,\), .*, got .* shape \(4,\)"):
        Stage([Affine(5), Affine(4)], 2)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_off_manifold_density_is_normal_with_its_scale(scale):
    stage = Stage(Affine(5), 2, off_manifold_scale=scale)
    v = torch.randn(7, 3, dtype=torch.float64)
    expected = torch.from_numpy(norm.logpdf(v.numpy(), scale=scale).sum(1))
    assert_close(stage.off_manifold_log_prob(v), expected)
