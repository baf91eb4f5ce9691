import math

import pytest
import torch

from strategies import assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage


def stage(dim, d, eigenvalues=None):
    torch.manual_seed(0)
    made = perturb(Stage(RealNVP(dim), d), 0.1).double()
    if eigenvalues is not None:
        made.add_rotation().fit(torch.linalg.qr(torch.randn(dim, dim).double()).Q, eigenvalues)
    return made


def reparametrized(dim=4):
    """A hierarchy with a rotated stage, and the same one with a flow on its code."""
    ordered = stage(8, dim, eigenvalues=torch.logspace(0, -2, 8))
    return Hierarchy([ordered]), Hierarchy([ordered, stage(dim, dim)])


def test_at_dim_shares_weights_and_density_and_larger_manifolds_are_closer():
    model = Hierarchy([stage(9, 8), stage(8, 3)])
    model.stages[1].off_manifold_scale = 0.5
    x = torch.randn(200, 9).double()
    models = [model.at_dim(dim) for dim in range(1, 9)]
    assert models[4].dims == [9, 8, 5]
    assert torch.equal(models[4].encode(x)[0][:, :3], model.encode(x)[0])
    assert_close(models[4].log_prob(x), model.log_prob(x))
    errors = [(x - each.encoder_projection(x)).square().mean().item() for each in models]
    assert errors[0] > errors[4] > errors[7]
    perturb(model, 0.1)
    assert_close(models[4].log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("dim", [1, 3, 6, 8])
def test_views_have_the_manifolds_of_the_first_stage_and_the_density_of_the_hierarchy(dim):
    alone, model = reparametrized()
    x = torch.randn(50, 8).double()
    found, expected = model.at_dim(dim), alone.at_dim(dim)
    assert_close(found.encoder_projection(x), expected.encoder_projection(x))
    assert_close(found.project(x, nearest=True), expected.project(x, nearest=True))
    assert_close(found.log_prob(x), model.log_prob(x))
    assert not torch.allclose(found.log_prob(x), alone.log_prob(x), atol=0.1)


@pytest.mark.parametrize("dim", [1, 3])
def test_smaller_views_are_those_of_an_ordered_stage(dim):
    alone, model = reparametrized()
    model.stages[1].ordered = True
    code, x, u = Hierarchy(model.stages[1:]), torch.randn(9, 8).double(), torch.randn(9, dim)
    view = model.at_dim(dim)
    assert view.dims == [8, 4, dim]
    padded = torch.nn.functional.pad(u.double(), (0, 4 - dim))
    assert_close(view.decode(u.double()), alone.decode(code.decode(padded)))
    assert_close(view.encode(x)[0], model.encode(x)[0][:, :dim])
    assert_close(view.log_prob(x), model.log_prob(x))
    # the first coordinates of the code have a density, unlike those of an unordered stage
    expected = -0.5 * (u.double().square() + math.log(2 * math.pi)).sum(1)
    assert_close(view.code_log_prob(u.double()), expected)
    for larger in (4, 6):
        assert_close(model.at_dim(larger).project(x), alone.at_dim(larger).project(x))


def test_samples_of_larger_views_have_the_off_manifold_scale():
    _, model = reparametrized()
    model.stages[0].off_manifold_scale = 0.3
    samples = model.at_dim(6).sample(50, 0.9, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    drawn = 0.9 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    assert_close(model.at_dim(6).encode(samples)[0][:, 4:], 0.3 * drawn[:, 4:])
    assert_close(model.encode(samples)[0], drawn[:, :4])
    smaller = model.at_dim(2).sample(50, 0.9, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    code = 0.9 * torch.randn(50, 4, generator=generator, dtype=torch.float64)
    expected = Hierarchy(model.stages[1:]).decode(code)[:, :2]
    assert_close(model.at_dim(2).encode(smaller)[0], expected)


def test_the_density_of_codes_of_a_view_is_normalized():
    _, model = reparametrized(2)
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    third = torch.full((len(plane), 1), 0.7, dtype=torch.float64)
    with torch.no_grad():
        density = model.at_dim(3).code_log_prob(torch.cat([plane, third], 1)).exp()
    total = density.sum().item() * (axis[1] - axis[0]).item() ** 2
    assert total == pytest.approx(math.exp(-0.5 * 0.7**2) / math.sqrt(2 * math.pi), rel=0.01)
    with pytest.raises(UserError, match="marginal"):
        model.at_dim(1).code_log_prob(plane[:, :1])
