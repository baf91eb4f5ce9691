import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import perturb
from submanifold.flows import Affine, RealNVP
from submanifold.geometry.nearest import nearest_point
from submanifold.models import Hierarchy, Stage


def affine(dim, d, seed):
    """A linear flow that is not orthogonal, the matrix of its decoder, and its origin."""
    generator = torch.Generator().manual_seed(seed)
    stage = Stage(Affine(dim), d).double()
    with torch.no_grad():
        for weight in stage.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(weight + 0.15 * noise)
    eye = torch.eye(dim, dtype=torch.float64)
    origin = stage.flow.inverse(torch.zeros(1, dim, dtype=torch.float64))
    return Hierarchy([stage]), (stage.flow.inverse(eye) - origin).T, origin


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.data(), st.integers(0, 99))
def test_one_step_finds_the_orthogonal_projection_of_a_linear_flow(dim, data, seed):
    d = data.draw(st.integers(1, dim))
    model, matrix, origin = affine(dim, d, seed)
    x = torch.randn(5, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    axes = torch.linalg.qr(matrix[:, :d]).Q
    expected = origin + (x - origin) @ axes @ axes.T
    assert torch.allclose(model.project(x, steps=1), expected, atol=1e-6)
    u, _ = model.encode(x, nearest=True)
    assert torch.allclose(model.decode(u), expected, atol=1e-6)


@pytest.mark.parametrize("rotated", [False, True])
def test_reparametrizations_do_not_slow_convergence(rotated):
    outer, matrix, origin = affine(5, 3, 0)
    torch.manual_seed(0)
    inner = Stage(perturb(RealNVP(3, hidden=8), 0.5), 3).double()
    if rotated:
        inner.add_rotation()
    assert inner.is_reparametrization != rotated
    model = Hierarchy([*outer.stages, inner])
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    axes = torch.linalg.qr(matrix[:, :3]).Q
    expected = origin + (x - origin) @ axes @ axes.T
    at_once = torch.allclose(model.project(x, steps=1), expected, atol=1e-6)
    assert at_once != rotated  # a rotated stage is searched in its own coordinates
    assert torch.allclose(model.project(x, steps=20), expected, atol=1e-6)


def circle(u):
    return torch.cat([u.cos(), u.sin()], 1)


def test_distant_starting_points_are_replaced_by_the_origin():
    def decode(u):
        return torch.cat([u, torch.expm1(20 * u)], 1)

    x = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    start = torch.tensor([[30.0]], dtype=torch.float64)
    u = nearest_point(decode, x, start, steps=10)
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[:, None]
    least = (decode(grid) - x).square().sum(1).min()
    assert (decode(u) - x).square().sum() == pytest.approx(float(least), rel=1e-3)


def sphere(u):
    a, b = u[:, 0], u[:, 1]
    return torch.stack([a.sin() * b.cos(), a.sin() * b.sin(), a.cos()], 1)


def paraboloid(u):
    return torch.cat([u, u.square().sum(1, keepdim=True)], 1)


def swiss_roll(u):
    t, height = u[:, 0], u[:, 1]
    return torch.stack([t * t.cos(), height, t * t.sin()], 1)


@pytest.mark.parametrize(
    ("surface", "low", "high"),
    [
        (sphere, [0.6, -3.0], [2.5, 3.0]),
        (paraboloid, [-1.0, -1.0], [1.0, 1.0]),
        (swiss_roll, [5.0, 0.0], [12.0, 10.0]),
    ],
)
def test_points_on_the_normal_of_a_surface_are_projected_to_its_foot(surface, low, high):
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    known = low + (high - low) * torch.rand(40, 2, generator=generator, dtype=torch.float64)
    columns = torch.func.vmap(torch.func.jacfwd(lambda each: surface(each[None])[0]))(known)
    normal = torch.linalg.cross(columns[:, :, 0], columns[:, :, 1])
    x = surface(known) + 0.2 * normal / normal.norm(dim=1, keepdim=True)
    u = nearest_point(surface, x, known + 0.05, steps=10)
    assert torch.allclose(u, known, atol=1e-5)


def test_the_distance_never_increases():
    torch.manual_seed(0)
    flow = RealNVP(6, couplings=8, hidden=16, mixing=True)
    with torch.no_grad():
        for weight in flow.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model = Hierarchy([Stage(flow, 3)])
    x = 3 * torch.randn(200, 6)
    first = (x - model.project(x)).square().sum(1)
    for steps in (1, 3):
        found = (x - model.project(x, steps=steps)).square().sum(1)
        assert (found <= first * (1 + 1e-5)).all()
        assert found.mean() < 0.9 * first.mean()


def test_step_lengths_are_chosen_per_event():
    x = torch.tensor([[0.0, 4.0], [1.2, 0.0]], dtype=torch.float64)
    start = torch.tensor([[-1.4], [0.4]], dtype=torch.float64)
    together = nearest_point(circle, x, start, steps=3)
    alone = torch.cat([nearest_point(circle, x[n : n + 1], start[n : n + 1], 3) for n in (0, 1)])
    assert torch.allclose(together, alone)


@pytest.mark.parametrize(("limit", "tries"), [(math.inf, 1), (0.3, 3)])
def test_steps_are_halved_only_until_they_are_accepted(limit, tries):
    decoded = []

    def decode(u):
        decoded.append(len(u))
        return u + 0.1 * u**2 + 10 * (u > limit)  # linear at 0, and a jump

    x = torch.ones(5, 3, dtype=torch.float64)
    u = nearest_point(decode, x, torch.zeros_like(x), steps=1)
    assert torch.allclose(u, x / 2 ** (tries - 1))
    # at the start, at u = 0, with a graph, for three directions, and for the candidates
    assert decoded == [5, 1, 5, *[5] * 3, *[5] * tries]


def test_eigenvalues_accelerate_convergence():
    scale = torch.logspace(0, -3, 60, dtype=torch.float64)
    x = torch.randn(3, 60, dtype=torch.float64)

    def decode(u):
        return u * scale

    start = torch.zeros(3, 60, dtype=torch.float64)
    plain = nearest_point(decode, x, start, 1)
    helped = nearest_point(decode, x, start, 1, scale.square())
    assert (x - decode(helped)).square().mean() < 1e-6
    assert (x - decode(plain)).square().mean() > 0.1


def test_events_with_an_overflowing_decoder_stay_at_their_starting_point():
    x = torch.tensor([[1.0], [1.0]])
    start = torch.tensor([[float("inf")], [0.0]])
    u = nearest_point(lambda u: u + torch.tensor([[float("inf")], [0.0]])[: len(u)], x, start, 2)
    assert u[0].isinf().all()
    assert torch.allclose(u[1], x[1])
