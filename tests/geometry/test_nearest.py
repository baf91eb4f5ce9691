import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import perturb
from submanifold.flows import Affine, RealNVP
from submanifold.geometry.nearest import gauss_newton, nearest_point
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
    origin = stage.flows[0].inverse(torch.zeros(1, dim, dtype=torch.float64))
    return Hierarchy([stage]), (stage.flows[0].inverse(eye) - origin).T, origin


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.data(), st.integers(0, 99))
def test_the_nearest_projection_of_a_linear_flow_is_orthogonal(dim, data, seed):
    d = data.draw(st.integers(1, dim))
    model, matrix, origin = affine(dim, d, seed)
    x = torch.randn(5, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    axes = torch.linalg.qr(matrix[:, :d]).Q
    expected = origin + (x - origin) @ axes @ axes.T
    assert torch.allclose(model.project(x, nearest=True), expected, atol=1e-6)
    u, _ = model.encode(x, "nearest")
    assert torch.allclose(model.decode(u), expected, atol=1e-6)
    u, _ = model.encode(x, "default")
    assert torch.allclose(model.decode(u), model.project(x), atol=1e-6)


@pytest.mark.parametrize("dim", [3, 12])
def test_coordinates_are_those_of_the_projection_that_is_chosen(dim):
    torch.manual_seed(0)
    model = perturb(Hierarchy([Stage(RealNVP(24, 4, mixing=True), dim)]).double(), 0.7)
    x = 2 * torch.randn(50, 24).double()
    projections = {
        "encoder": model.encoder_projection(x),
        "default": model.project(x),
        "nearest": model.project(x, nearest=True),
    }
    errors = [(x - projected).square().mean().item() for projected in projections.values()]
    assert errors[0] > 1.05 * errors[1] > 1.05**2 * errors[2], "projections that differ"
    for name, projected in projections.items():
        u, _ = model.encode(x, name)
        torch.testing.assert_close(model.decode(u), projected, rtol=0, atol=1e-6)


def test_without_gradients_the_nearest_point_is_the_start():
    model, _, _ = affine(4, 2, 0)
    x, u = torch.randn(3, 4).double(), torch.randn(3, 2).double()
    nearest = nearest_point(model.decode, x, u.clone(), 0)
    assert torch.equal(nearest.u, u)
    assert torch.equal(nearest.image, model.decode(u))


def test_reparametrizations_do_not_slow_convergence():
    outer, *_ = affine(5, 3, 0)
    torch.manual_seed(0)
    inner = Stage(perturb(RealNVP(3, hidden=8), 0.5), 3).double()
    model = Hierarchy([*outer.stages, inner])
    assert inner.is_reparametrization
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(model.project(x), outer.project(x), atol=1e-9)
    for projection in ("default", "nearest"):
        u, _ = model.encode(x, projection)
        expected = model.project(x, nearest=projection == "nearest")
        assert torch.allclose(model.decode(u), expected, atol=1e-6)


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
    u = gauss_newton(surface, x, known + 0.05, steps=12).u
    assert torch.allclose(u, known, atol=1e-5)


def test_the_distance_never_increases():
    torch.manual_seed(0)
    model = perturb(Hierarchy([Stage(RealNVP(6, couplings=8, hidden=16, mixing=True), 3)]), 0.5)
    x = 3 * torch.randn(200, 6)
    first = (x - model.encoder_projection(x)).square().sum(1)
    for nearest in (False, True):
        found = (x - model.project(x, nearest)).square().sum(1)
        assert (found <= first).all()
        assert found.mean() < 0.9 * first.mean()


def test_each_gradient_costs_one_decoding():
    decoded = []

    def decode(u):
        decoded.append(len(u))
        return u * torch.tensor([1.0, 0.5, 0.2])

    x = torch.ones(5, 3)
    found = nearest_point(decode, x, torch.zeros_like(x), 4, torch.tensor([1.0, 0.25, 0.04]))
    assert decoded == [5] * 5  # four with a graph, and the result
    assert torch.equal(found.image, decode(found.u))


def test_eigenvalues_accelerate_convergence():
    scale = torch.logspace(0, -3, 60, dtype=torch.float64)
    x = torch.randn(3, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, helped = (
        nearest_point(lambda u: u * scale, x, torch.zeros_like(x), 4, *eigenvalues).image
        for eigenvalues in ([], [scale.square()])
    )
    assert (x - helped).square().mean() < 1e-6
    assert (x - plain).square().mean() > 0.1


@pytest.mark.parametrize("search", [nearest_point, gauss_newton])
def test_events_with_an_overflowing_decoder_stay_at_their_starting_point(search):
    x = torch.tensor([[1.0], [1.0]])
    start = torch.tensor([[float("inf")], [0.0]])
    u = search(lambda u: u + torch.tensor([[float("inf")], [0.0]])[: len(u)], x, start, 4).u
    assert u[0].isinf().all()
    assert torch.allclose(u[1], x[1])


def test_conjugate_directions_accelerate_convergence():
    """Thirty gradients leave 40 times the error if each direction is that of the gradient."""
    scale = torch.logspace(0, -1, 40, dtype=torch.float64)
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = nearest_point(lambda u: u * scale, x, torch.zeros_like(x), 30)
    assert (x - found.image).square().sum(1).mean() < 5e-4


def test_easy_points_do_not_wait_for_hard_ones():
    """Both take as many decodes together as the hard one alone."""

    def decodes(x):
        decoded = []

        def decode(u):
            decoded.append(len(u))
            return torch.atan(u)  # from far away a Gauss-Newton step is too long

        gauss_newton(decode, torch.full_like(x, 0.5), x, steps=1)
        return len(decoded)

    easy, hard = torch.tensor([[0.1]]), torch.tensor([[3.0]])
    assert decodes(easy) < decodes(hard)
    assert decodes(torch.cat([easy, hard])) == decodes(hard)


@pytest.mark.parametrize(("nearest", "gradients"), [(False, 4), (True, 16)])
def test_projections_compute_4_and_16_gradients(nearest, gradients):
    decoded = []

    class Counted(RealNVP):
        def inverse(self, z, context=None):
            decoded.append(torch.is_grad_enabled())
            return super().inverse(z, context)

    Hierarchy([Stage(Counted(12, 2), 9)]).project(torch.ones(2, 12), nearest)
    assert sum(decoded) == gradients


def test_the_nearest_of_all_decoded_points_is_returned():
    """It is not the last one for a quarter of these events, near a strongly curved surface."""
    generator, errors = torch.Generator().manual_seed(0), []
    known = torch.tensor([5.0, 0.0]) + torch.tensor([7.0, 10.0]) * torch.rand(
        200, 2, generator=generator
    )
    x = swiss_roll(known) + 0.3 * torch.randn(200, 3, generator=generator)
    start = known + torch.randn(200, 2, generator=generator)

    def decode(u):
        image = swiss_roll(u)
        if len(u) == len(x):
            errors.append((x - image).square().sum(1).detach())
        return image

    image = nearest_point(decode, x, start, 8).image
    nearest, last = torch.stack(errors).amin(0), errors[-1]
    assert (nearest < 0.99 * last).sum() > 40
    torch.testing.assert_close((x - image).square().sum(1), nearest)


@pytest.mark.parametrize("dim", [3, 12])  # by Gauss-Newton steps, and by gradients
def test_projections_record_no_graph(dim):
    model, modes = Hierarchy([Stage(RealNVP(16, hidden=4), dim)]), set()
    model.stages[0].flows[0].register_forward_pre_hook(
        lambda *_: modes.add(torch.is_grad_enabled())
    )
    x = torch.randn(2, 16)
    for nearest in (False, True):
        model.project(x, nearest)
    assert modes == {False}
    u, _ = model.encode(x)
    for search in (nearest_point, gauss_newton):
        assert u.requires_grad
        assert not any(part.requires_grad for part in search(model.decode, x, u, 2))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_no_events_have_no_projections(precision):
    def decode(u):
        return u.repeat(1, 2)

    found = nearest_point(decode, torch.zeros(0, 6), torch.zeros(0, 3), 4, None, precision)
    assert (found.u.shape, found.image.shape) == ((0, 3), (0, 6))
