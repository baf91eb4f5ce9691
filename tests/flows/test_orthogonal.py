import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import perturb
from submanifold.flows import Reflections, Rotation, initialize
from submanifold.flows.orthogonal import BlockReflections, PrincipalReflections

both_forms = pytest.mark.parametrize("directions", [None, 3])


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


@both_forms
def test_rotation_starts_as_the_identity_and_unit_vectors_keep_it(directions):
    x, rotation = torch.randn(3, 5), Rotation(5, directions)
    assert torch.equal(rotation(x)[0], x)
    assert torch.equal(rotation.inverse(x), x)
    rotation.fit(torch.eye(5)[:, : directions or 5], torch.ones(5))
    assert torch.allclose(rotation(x)[0].abs(), x.abs(), atol=1e-6)


def test_rotation_of_few_axes_stores_no_matrix():
    rotation = Rotation(1000, 3)
    assert not list(rotation.parameters())
    assert sum(each.numel() for each in rotation.state_dict().values()) == 1000 * 3 + 9 + 1000


def test_rotation_orthonormalizes_axes_of_single_precision():
    axes = orthonormal(200, 200).float()
    axes += 1e-4 * torch.randn(200, 200)
    rotation = Rotation(200)
    rotation.fit(axes, torch.ones(200))
    gram = rotation.matrix.double() @ rotation.matrix.double().T
    assert (gram - torch.eye(200)).abs().max() < 1e-5


def test_block_reflections_equal_reflections():
    torch.manual_seed(0)
    blocked, single = BlockReflections(9, 5).double(), Reflections(9, 5).double()
    single.load_state_dict(blocked.state_dict())
    x = torch.randn(7, 9, dtype=torch.float64)
    torch.testing.assert_close(blocked(x)[0], single(x)[0])
    torch.testing.assert_close(blocked.inverse(x), single.inverse(x))
    matrix = perturb(single)(torch.eye(9, dtype=torch.float64))[0]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(9, dtype=torch.float64))


def test_principal_reflections_train_at_the_rate_of_random_ones():
    torch.manual_seed(0)
    layer = PrincipalReflections(50, 6)
    initialize(layer, torch.randn(80, 50))
    torch.testing.assert_close(layer.vectors.norm(dim=1), torch.full((6,), 50**0.5))
