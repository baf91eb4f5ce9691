"""Conformal embeddings: one scale in all directions, spheres, and what jumps."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import DTYPES, perturb
from submanifold.common.errors import UserError
from submanifold.flows import Reflections, initialize
from submanifold.flows.conformal import (
    ConditionalOrthogonal,
    Conformal,
    Similarity,
    SpecialConformal,
)
from submanifold.flows.orthogonal import BlockReflections, PrincipalReflections

SHAPES = [(1,), (2,), (5,), (3, 8, 8), (1, 6, 6)]


@st.composite
def conformals(draw):
    """(flow, latents): set from data and moved, so that no part of it is the identity."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from(SHAPES))
    dim = draw(st.integers(1, min(math.prod(shape), 7)))
    reflections = draw(st.none() | st.integers(1, 20))
    flow = Conformal(shape, dim, draw(st.integers(0, 4)), reflections).double()
    initialize(flow, 3 * torch.randn(32, *shape, dtype=torch.float64) + 1)
    torch.nn.init.normal_(perturb(flow).special_conformal.weight)
    return flow, torch.randn(4, dim, dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(conformals())
def test_latents_are_found_again(case):
    flow, u = case
    with torch.no_grad():
        x = flow.inverse(u)
        found, _ = flow(x)
    assert x.shape == (len(u), *flow.event_shape)
    torch.testing.assert_close(found, u, rtol=0, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(conformals())
def test_the_jacobian_is_a_multiple_of_an_isometry_and_has_the_volume_it_says(case):
    flow, u = case
    _, volume = flow(flow.inverse(u))
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda v: flow.inverse(v[None]).flatten()))(u)
    gram = jacobian.mT @ jacobian
    torch.testing.assert_close(volume, -0.5 * torch.linalg.slogdet(gram)[1], rtol=0, atol=1e-6)
    relative = gram / gram[:, :1, :1]
    isometric = torch.eye(flow.dim, dtype=gram.dtype).expand_as(gram)
    torch.testing.assert_close(relative, isometric, rtol=0, atol=1e-6)


def test_off_the_manifold_the_volume_is_that_of_the_point_it_is_projected_to():
    torch.manual_seed(0)
    flow = perturb(Conformal((5,), 2)).double()
    torch.nn.init.normal_(flow.special_conformal.weight)
    u, volume = flow(torch.randn(6, 5, dtype=torch.float64))
    torch.testing.assert_close(flow(flow.inverse(u))[1], volume)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_sphere_set_by_hand_is_the_stereographic_projection(dim):
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


def reconstruct(flow, x, steps):
    """Train it on the squared error alone; the errors, each a mean over coordinates."""
    initialize(flow, x[:512])
    optimizer = torch.optim.Adam(flow.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = x[torch.randint(len(x), (256,))]
        u, volume = flow(batch)
        error = (flow.inverse(u) - batch).square().mean()
        error.backward()
        assert volume.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (flow.inverse(flow(x)[0]) - x).square().mean().sqrt().item()


@pytest.mark.parametrize("dim", [1, 2])
def test_trained_it_is_a_circle_or_a_sphere_but_for_a_cap(dim):
    torch.manual_seed(0)
    x = torch.randn(8000, dim + 1)
    x = x / x.norm(dim=1, keepdim=True)
    x = 0.7 * x[x[:, -1] < 0.5] + torch.tensor([0.3, -0.2, 0.5])[: dim + 1]
    flow = Conformal((dim + 1,), dim, layers=0)
    assert reconstruct(flow, x, 0) > 0.1  # the best plane
    assert reconstruct(flow, x, 400) < 1e-3


def test_conditional_matrices_set_by_hand_send_long_ones_along_another_axis():
    flow = Conformal((2,), 1, layers=1, reflections=1)
    with torch.no_grad():
        cut = flow.layers.bijections[-1]
        cut.short.vectors.copy_(torch.tensor([[0.0, 1.0]]))  # keeps the first axis
        cut.long.vectors.copy_(torch.tensor([[1.0, -1.0]]))  # swaps the axes
        flow.axes_of_plane.vectors.copy_(torch.tensor([[0.0, 1.0]]))
    u = torch.tensor([[-3.0], [-1.4], [-0.2], [1.4], [1.5]])  # they change at the root of 2
    x = torch.tensor([[0.0, -3.0], [-1.4, 0.0], [-0.2, 0.0], [1.4, 0.0], [0.0, 1.5]])
    torch.testing.assert_close(flow.inverse(u), x)
    torch.testing.assert_close(flow(x), (u, torch.zeros(5)))


def test_set_from_data_it_is_the_plane_of_the_principal_components():
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


def test_a_batch_smaller_than_the_manifold_sets_what_it_can():
    torch.manual_seed(0)
    x = torch.randn(4, 20, dtype=torch.float64)
    flow = Conformal((20,), 9).double()
    initialize(flow, x)
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x)


def test_all_reflections_at_once_are_those_one_by_one():
    torch.manual_seed(0)
    together, each = BlockReflections(9, 5).double(), Reflections(9, 5).double()
    each.load_state_dict(together.state_dict())
    x = torch.randn(7, 9, dtype=torch.float64)
    torch.testing.assert_close(together(x)[0], each(x)[0])
    torch.testing.assert_close(together.inverse(x), each.inverse(x))


def test_a_fresh_conditional_matrix_does_not_jump():
    torch.manual_seed(0)
    turn = ConditionalOrthogonal(4, 4)
    edge = torch.nn.functional.normalize(torch.randn(6, 4), dim=1) * 2
    torch.testing.assert_close(turn(0.9999 * edge)[0], turn(1.0001 * edge)[0], atol=1e-3, rtol=0)
    perturb(turn, 3)
    assert (turn(0.9999 * edge)[0] - turn(1.0001 * edge)[0]).abs().max() > 0.1


@pytest.mark.parametrize("part", [Similarity(5), SpecialConformal(5), ConditionalOrthogonal(5, 3)])
def test_each_part_is_a_bijection_with_the_determinant_it_says(part):
    torch.manual_seed(0)
    part = perturb(part.double(), 2)
    x = torch.randn(6, 5, dtype=torch.float64)
    z, log_det = part(x)
    torch.testing.assert_close(part.inverse(z), x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: part(v[None])[0][0]))(x)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_sent_to_infinity_stays_a_number(dtype):
    bend = SpecialConformal(3).to(dtype)
    torch.nn.init.ones_(bend.weight)
    z, log_det = bend(torch.ones(1, 3, dtype=dtype))
    assert z.isfinite().all()
    assert log_det.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_leaves_latents_and_volumes_as_they_are(dtype):
    torch.manual_seed(0)
    flow = perturb(Conformal((1, 4, 4), 3)).to(dtype)
    x = torch.randn(5, 1, 4, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        cast = flow(x)
        events = flow.inverse(cast[0])
    u, volume = flow(x)
    for found, expected in zip((*cast, events), (u, volume, flow.inverse(u)), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_likelihood_on_images_trains_all_that_it_has():
    torch.manual_seed(0)
    x = torch.rand(64, 1, 8, 8).cumsum(2).cumsum(3) / 32
    flow = Conformal((1, 8, 8), 6)
    initialize(flow, x)

    def loss():
        u, volume = flow(x)
        nll = 0.5 * u.square().sum(1) - volume
        return nll.mean() + 1e3 * (flow.inverse(u) - x).square().sum((1, 2, 3)).mean()

    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    before = loss().item()
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        assert all(p.grad.isfinite().all() for p in flow.parameters())
        optimizer.step()
    assert all((p.grad != 0).any() for p in flow.parameters())
    assert loss().item() < before


@pytest.mark.parametrize("shape", [(7,), (3, 12, 8)])
def test_its_config_builds_it_again(shape):
    torch.manual_seed(0)
    flow = perturb(Conformal(shape, 3, layers=2, reflections=4))
    again = Conformal(**json.loads(json.dumps(flow.config)))
    again.load_state_dict(flow.state_dict())
    assert (again.event_shape, again.dim, again.latent_dim) == (shape, 3, 3)
    u = torch.randn(2, 3)
    assert again.inverse(u).equal(flow.inverse(u))


def test_squeezes_end_where_a_side_is_odd():
    assert Conformal((1, 12, 8), 3, layers=4).inner_shape == (16, 3, 2)


def test_more_dimensions_than_numbers_are_refused():
    with pytest.raises(UserError, match=r"^dim: expected at most 4"):
        Conformal((4,), 5)


def test_principal_reflections_learn_no_faster_than_random_ones():
    torch.manual_seed(0)
    turn = PrincipalReflections(50, 6)
    initialize(turn, torch.randn(80, 50))
    torch.testing.assert_close(turn.vectors.norm(dim=1), torch.full((6,), 50**0.5))
