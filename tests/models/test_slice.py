"""Manifolds of every dimension of one model: at_dim and slices."""

import math

import pytest
import torch

from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.flows import RealNVP
from submanifold.geometry.volume import log_volume
from submanifold.models import Hierarchy, Model, Stage, manifold_log_prob


def stage(dim, d, eigenvalues=None):
    torch.manual_seed(0)
    made = perturb(Stage(RealNVP(dim), d), 0.1)
    if eigenvalues is not None:
        made.add_rotation().fit(torch.linalg.qr(torch.randn(dim, dim)).Q, eigenvalues)
    return made


def bent(dim=4):
    ordered = stage(8, dim, eigenvalues=torch.logspace(0, -2, 8))
    return Hierarchy([ordered]), Hierarchy([ordered, stage(dim, dim)])


def test_a_model_of_another_dimension_shares_weights_and_density():
    model = Hierarchy([stage(8, 6), stage(6, 3)])
    x = torch.randn(5, 8)
    other = model.at_dim(5)
    assert other.dims == [8, 6, 5]
    assert torch.allclose(other.log_prob(x), model.log_prob(x), atol=1e-5)
    u, _v = model.encode(x)
    nested, _ = other.encode(x)
    assert torch.equal(nested[:, :3], u)
    before = other.log_prob(x)
    perturb(model, 0.1)
    assert not torch.equal(other.log_prob(x), before)
    with pytest.raises(UserError, match="dim=7"):
        model.at_dim(7)


@pytest.mark.parametrize("dim", [1, 3, 4, 6, 8])
def test_a_flow_on_the_code_leaves_every_manifold_and_all_have_its_density(dim):
    alone, model = bent()
    x = torch.randn(50, 8)
    at = model.at_dim(dim)
    assert model.max_dim == 8
    assert torch.allclose(at.project(x), alone.at_dim(dim).project(x), atol=1e-4)
    assert torch.allclose(at.project(x, steps=3), alone.at_dim(dim).project(x, steps=3), atol=1e-3)
    u, v, log_prob = at(x)
    assert (u.shape, v.shape) == ((50, dim), (50, 8 - dim))
    assert torch.allclose(at.decode(u, v), x, atol=1e-4)
    assert torch.allclose(log_prob, model.log_prob(x), atol=1e-5)
    assert not torch.allclose(log_prob, alone.log_prob(x), atol=0.1)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_a_slice_orders_the_off_manifold_parts_of_several_outer_stages(dim):
    ordered = stage(6, 4, eigenvalues=torch.logspace(0, -2, 6))
    model = Hierarchy([stage(10, 9), stage(9, 6), ordered, stage(4, 4)])
    x = torch.randn(20, 10)
    at = model.at_dim(dim)
    u, v = at.encode(x)
    assert torch.allclose(at.decode(u, v), x, atol=1e-4)
    _, whole = model.encode(x)
    assert torch.equal(v[:, -4:], whole[:, -4:])


def test_a_slices_samples_have_the_scale_of_the_off_manifold_density():
    """Beyond the whole's dimension, coordinates are N(0, sigma_v^2): those of a larger manifold."""
    _, model = bent()
    model.stages[0].off_manifold_scale = 0.3
    at = model.at_dim(6)
    samples = at.sample(50, 0.9, torch.Generator().manual_seed(0))
    drawn = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    u = at.encode(samples)[0]
    assert torch.allclose(u[:, 4:], 0.3 * 0.9 * drawn[:, 4:], atol=1e-4)
    code = model.encode(samples)[0]
    assert torch.allclose(code, 0.9 * drawn[:, :4], atol=1e-3)


def test_a_slices_samples_have_the_density_of_the_whole():
    alone, model = bent()
    n = 4000

    def drawn(dim):
        return model.at_dim(dim).sample(n, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        whole = alone.encode(drawn(4))[0]
        smaller = alone.at_dim(2).encode(drawn(2))[0]
        larger = alone.at_dim(6).encode(drawn(6))[0]
    assert torch.allclose(smaller, whole[:, :2], atol=1e-3)
    error = 5 * whole.std(0) / n**0.5
    assert ((larger[:, :4].mean(0) - whole.mean(0)).abs() < 2 * error).all()
    assert larger[:, 4:].std(0).tolist() == pytest.approx([1, 1], abs=0.1)
    # normal coordinates would have another mean
    assert (whole.mean(0).abs() > error).any()


def test_the_density_on_a_slice_is_that_of_its_samples():
    _, model = bent(2)
    larger = model.at_dim(3)
    u = torch.randn(5, 3, dtype=torch.float64)
    larger = larger.double()
    side = torch.linspace(-9, 9, 181, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    at = torch.cat([plane, u[:1, 2:].expand(len(plane), 1)], 1)
    with torch.no_grad():
        total = larger.code_log_prob(at).exp().sum() * (side[1] - side[0]) ** 2
    beside = math.exp(-0.5 * u[0, 2] ** 2) / math.sqrt(2 * math.pi)
    assert total.item() == pytest.approx(beside, rel=0.01)
    found, _ = manifold_log_prob(larger, larger.decode(u))
    volume = log_volume(larger.decode, u)
    assert torch.allclose(found, larger.code_log_prob(u) - volume, atol=1e-6)
    with pytest.raises(UserError, match="marginal"):
        model.at_dim(1).code_log_prob(u[:, :1])


def test_a_slice_is_a_model_with_a_file(tmp_path):
    _, model = bent()
    at = model.at_dim(3)
    at.save(tmp_path / "slice.safetensors")
    x = torch.randn(5, 8)
    assert torch.equal(Model.load(tmp_path / "slice.safetensors").project(x), at.project(x))
    with pytest.raises(UserError, match="dim=9"):
        model.at_dim(9)


def test_larger_manifolds_hold_more():
    model = Hierarchy([stage(8, 3)])
    x = torch.randn(200, 8)
    errors = [model.at_dim(d).rejection_map(x).square().mean().item() for d in range(1, 9)]
    assert errors[-1] < 1e-10
    assert errors[0] > errors[4] > errors[6]
