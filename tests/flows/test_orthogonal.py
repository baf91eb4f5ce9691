import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import perturb
from submanifold.flows import Reflections, Rotation
from submanifold.flows.orthogonal import BlockReflections


def orthonormal(dim, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, count, generator=generator, dtype=torch.float64)).Q


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.data(), st.integers(0, 99))
def test_rotation_is_orthogonal_with_the_given_axes_first(dim, data, seed):
    directions = data.draw(st.none() | st.integers(1, dim))
    rotation, axes = Rotation(dim, directions).double(), orthonormal(dim, directions or dim, seed)
    rotation.fit(axes, torch.ones(dim))
    x = torch.randn(4, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z, log_det = rotation(x)
    assert torch.equal(log_det, torch.zeros(4))
    assert torch.allclose(z.norm(dim=1), x.norm(dim=1))
    assert torch.allclose(z[:, : axes.shape[1]].abs(), (x @ axes).abs())
    assert torch.allclose(rotation.inverse(z), x)
    few = z[:, :2]
    padded = torch.nn.functional.pad(few, (0, dim - few.shape[1]))
    assert torch.allclose(rotation.inverse(few), rotation.inverse(padded))


def test_block_reflections_equal_reflections():
    torch.manual_seed(0)
    blocked, single = BlockReflections(9, 5).double(), Reflections(9, 5).double()
    single.load_state_dict(blocked.state_dict())
    x = torch.randn(7, 9, dtype=torch.float64)
    torch.testing.assert_close(blocked(x)[0], single(x)[0])
    torch.testing.assert_close(blocked.inverse(x), single.inverse(x))
    matrix = perturb(single)(torch.eye(9, dtype=torch.float64))[0]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize("directions", [None, 5])
def test_a_rotation_in_double_precision_is_orthogonal_to_double_precision(directions):
    torch.manual_seed(0)
    rotation, count = Rotation(12, directions), directions or 12
    axes = torch.linalg.qr(torch.randn(12, 12)).Q[:, :count]
    rotation.fit(axes, torch.ones(12))
    single = rotation(torch.eye(12))[0]
    x = torch.eye(12).double()
    z, _ = rotation.double()(x)
    torch.testing.assert_close(z.float(), single)
    torch.testing.assert_close(rotation.inverse(z), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(z @ z.T, x, rtol=0, atol=1e-13)
