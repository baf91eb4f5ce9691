import pytest
import torch

from strategies import assert_close
from submanifold.common.errors import UserError
from submanifold.flows import Affine, RealNVP
from submanifold.models import Stage


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
