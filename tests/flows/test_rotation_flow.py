import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from submanifold.flows import Rotation
from submanifold.flows.orthogonal import tail_sums


def orthonormal(dim, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, count, generator=generator, dtype=torch.float64)).Q


def fitted(dim, directions, seed=0):
    rotation = Rotation(dim, directions).double()
    rotation.fit(orthonormal(dim, directions or dim, seed), torch.ones(dim))
    return rotation


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.data(), st.integers(0, 99))
def test_it_is_orthogonal_and_invertible(dim, data, seed):
    directions = data.draw(st.one_of(st.none(), st.integers(1, dim)))
    rotation = fitted(dim, directions, seed)
    x = torch.randn(4, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z, log_det = rotation(x)
    assert torch.equal(log_det, torch.zeros(4))
    assert torch.allclose(z.norm(dim=1), x.norm(dim=1))
    assert torch.allclose(rotation.inverse(z), x)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.data(), st.integers(0, 99))
def test_the_first_latents_are_along_the_axes_it_was_given(dim, data, seed):
    count = data.draw(st.integers(1, dim))
    axes = orthonormal(dim, count, seed)
    x = torch.randn(4, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for directions in (count, *([None] if count == dim else [])):
        rotation = Rotation(dim, directions).double()
        rotation.fit(axes, torch.ones(dim))
        assert torch.allclose(rotation(x)[0][:, :count].abs(), (x @ axes).abs())


@pytest.mark.parametrize("directions", [None, 3])
def test_it_starts_as_the_identity(directions):
    x = torch.randn(3, 5)
    rotation = Rotation(5, directions)
    assert torch.equal(rotation(x)[0], x)
    assert torch.equal(rotation.inverse(x), x)


@pytest.mark.parametrize("directions", [None, 3])
def test_axes_that_are_unit_vectors_already_stay(directions):
    rotation = Rotation(5, directions)
    rotation.fit(torch.eye(5)[:, : directions or 5], torch.ones(5))
    x = torch.randn(3, 5)
    assert torch.allclose(rotation(x)[0].abs(), x.abs(), atol=1e-6)


@pytest.mark.parametrize("directions", [None, 3])
def test_latents_that_are_left_out_count_as_zero(directions):
    rotation = fitted(6, directions)
    u = torch.randn(4, 2, dtype=torch.float64)
    whole = torch.cat([u, torch.zeros(4, 4, dtype=torch.float64)], 1)
    assert torch.allclose(rotation.inverse(u), rotation.inverse(whole))


def test_it_has_no_parameters_and_no_matrix_where_it_chooses_a_few_axes():
    rotation = Rotation(1000, 3)
    assert not list(rotation.parameters())
    assert sum(each.numel() for each in rotation.state_dict().values()) == 1000 * 3 + 9 + 1000


def test_axes_in_single_precision_are_made_orthogonal():
    axes = orthonormal(200, 200).float()
    axes += 1e-4 * torch.randn(200, 200)
    rotation = Rotation(200)
    rotation.fit(axes, torch.ones(200))
    gram = rotation.matrix.double() @ rotation.matrix.double().T
    assert (gram - torch.eye(200)).abs().max() < 1e-5


def test_tail_sums():
    assert tail_sums(torch.tensor([4.0, 2.0, 1.0])).tolist() == [7.0, 3.0, 1.0, 0.0]
