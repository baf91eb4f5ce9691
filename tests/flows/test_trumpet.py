"""Trumpets: exact left inverses, projections, and where they start and end on a linear Gaussian."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import DTYPES, perturb
from submanifold.common.errors import UserError
from submanifold.flows import initialize
from submanifold.flows.injective import InjectiveLinear, principal_directions
from submanifold.flows.trumpet import Isotropic, Trumpet
from submanifold.geometry.linearization import jvp

VARIANCES = torch.tensor([4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025], dtype=torch.float64)
LEAST = VARIANCES[3:].sum() / 8
some = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def trumpets(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.sampled_from([(1,), (2,), (7,), (3, 8, 8), (1, 8, 8), (1, 4, 6)]))
    most = torch.Size(shape).numel()
    dim = draw(st.sampled_from([d for d in (1, 2, 3, 5, 16, 50, 63, 64, 100, 192) if d <= most]))
    flow = Trumpet(shape, dim, draw(st.integers(1, 3)), width=5)
    return perturb(flow).double(), torch.randn(3, *shape, dtype=torch.float64)


def linear_gaussian(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    return torch.randn(rows, 8, generator=generator, dtype=torch.float64) * VARIANCES.sqrt() @ turn


def missed(flow, x):
    return (flow.inverse(flow(x)[0]) - x).square().mean()


@some
@given(trumpets())
def test_forward_is_a_left_inverse(drawn):
    flow, _ = drawn
    u = torch.randn(3, flow.dim, dtype=torch.float64)
    x = flow.inverse(u)
    assert x.shape == (3, *flow.event_shape)
    torch.testing.assert_close(flow(x)[0], u, rtol=0, atol=1e-8)


@some
@given(trumpets())
def test_a_projection_stays_where_it_is(drawn):
    flow, x = drawn
    u, log_det = flow(x)
    assert u.shape == (3, flow.dim)
    assert u.dtype == log_det.dtype == x.dtype
    assert log_det.shape == (3,)
    assert log_det.isnan().all()
    projection = flow.inverse(u)
    torch.testing.assert_close(flow.inverse(flow(projection)[0]), projection, rtol=0, atol=1e-8)


@some
@given(trumpets())
def test_the_derivative_has_full_rank(drawn):
    flow, _ = drawn
    u = torch.randn(flow.dim, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda u: flow.inverse(u[None]).flatten())(u)
    assert torch.linalg.svdvals(jacobian).min() > 1e-3


def test_its_config_rebuilds_it():
    flow = Trumpet((1, 8, 8), 5, steps=1, width=4)
    again = Trumpet(**flow.config)
    again.load_state_dict(flow.state_dict())
    u = torch.randn(2, 5)
    assert torch.equal(again.inverse(u), flow.inverse(u))


@pytest.mark.parametrize(
    ("shape", "dim", "grid"),
    [
        ((3, 32, 32), 64, (192, 1, 1)),
        ((3, 32, 32), 500, (24, 8, 8)),
        ((3, 32, 32), 3000, (12, 16, 16)),
        ((1, 6, 6), 2, (2, 3, 3)),
        ((8,), 3, (8,)),
    ],
)
def test_channels_are_halved_as_long_as_more_than_a_few_times_dim_are_left(shape, dim, grid):
    with torch.device("meta"):
        assert Trumpet(shape, dim, steps=1, width=4).inner_shape == grid


def test_an_image_that_cannot_be_squeezed_is_refused():
    with pytest.raises(UserError, match="got 7x8 pixels"):
        Trumpet((1, 7, 8), 5)


@pytest.mark.parametrize("shape", [(8,), (3, 8, 8)])
def test_gradients_are_finite_and_reach_every_parameter_set_from_data_or_not(shape):
    torch.manual_seed(0)
    x = torch.randn(16, *shape)
    for fit in (False, True):
        flow = Trumpet(shape, 5, steps=2, width=4)
        if fit:
            initialize(flow, x)
            assert not any(getattr(each, "uninitialized", False) for each in flow.modules())
        missed(perturb(flow, 0.05), x).backward()
        for p in flow.parameters():
            assert p.grad.isfinite().all()
            assert p.grad.abs().sum() > 0


def test_autocast_leaves_what_is_linear_in_full_precision():
    torch.manual_seed(0)
    flow, x = Trumpet((1, 8, 8), 5, steps=1, width=4), torch.randn(4, 1, 8, 8)
    u = flow(x)[0]
    with torch.autocast("cpu", torch.bfloat16):  # untrained coupling nets give zeros
        assert torch.equal(flow(x)[0], u)
        assert torch.equal(flow.inverse(u), flow.inverse(u.clone()))
        torch.testing.assert_close(flow(flow.inverse(u))[0], u, rtol=0, atol=1e-5)


def test_set_from_data_it_starts_as_their_principal_components():
    torch.manual_seed(0)
    x = linear_gaussian(0, 4000)
    flow = Trumpet((8,), 3).double()
    initialize(flow, x)
    assert (
        missed(flow, x) < 1.001 * torch.linalg.svdvals(x - x.mean(0))[3:].square().sum() / x.numel()
    )
    u = flow(x)[0]
    torch.testing.assert_close(u.T.cov(), torch.eye(3).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(u.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [4, 400])
def test_few_rows_still_tell_the_large_coordinates_from_the_small(rows):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.linspace(2, -2, 40).exp()
    x = sizes * torch.randn(rows, 40, generator=generator)
    columns, deviations = principal_directions(x, 20)
    torch.testing.assert_close(columns.T @ columns, torch.eye(20).double())
    assert (deviations / sizes[:20] < 3).all()
    assert (deviations / sizes[:20] > 1 / 3).all()
    kept = (sizes.double()[:, None] * columns).square().sum() / sizes.square().sum()
    assert kept > 0.95  # by twenty directions at random: 0.5


def test_an_image_starts_with_the_strongest_channels_in_place():
    """What is smooth over 8x8 pixels is kept by the halvings, whatever the steps' order."""
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 8)
    x = torch.randn(512, 3, 1, 1) + torch.randn(512, 1, 1, 1) * ramp
    x = x + 0.01 * torch.randn(512, 3, 8, 8)
    flow = Trumpet((3, 8, 8), 4, steps=2, width=4)
    initialize(flow, x)
    assert missed(flow, x) < 1.5 * 0.01**2


def test_trained_without_data_to_start_from_it_finds_the_principal_components():
    torch.manual_seed(0)
    x = linear_gaussian(0, 20000)
    train, test = x[:10000], x[10000:]
    flow = Trumpet((8,), 3, steps=2, width=16).double()
    optimizer = torch.optim.Adam(flow.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 300)
    for step in range(300):
        optimizer.zero_grad()
        missed(flow, train.roll(-256 * step, 0)[:256]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = missed(flow, test)
    assert error.item() == pytest.approx(LEAST.item(), rel=0.03)


def test_a_map_of_no_scale_keeps_distances_when_set_from_data():
    torch.manual_seed(0)
    x = 3 * torch.randn(500, 6) + 1
    linear, mixing = InjectiveLinear(6, 6), Isotropic(6)
    initialize(linear, x)
    torch.testing.assert_close(torch.pdist(linear(x)), torch.pdist(x))
    initialize(mixing, x)
    ratios = torch.pdist(mixing(x)[0]) / torch.pdist(x)
    torch.testing.assert_close(ratios, torch.full_like(ratios, 1 / 3), rtol=0.05, atol=0)
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


@pytest.mark.parametrize("shape", [(7,), (3, 8, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_has_forward_derivatives(shape, dtype):
    torch.manual_seed(0)
    flow = perturb(Trumpet(shape, 5, steps=2, width=4)).to(dtype)
    u, along = torch.randn(2, 3, 5, dtype=dtype)
    tangent = jvp(flow.inverse, u, along)
    with torch.no_grad():
        flow, u, step = flow.double(), u.double(), 1e-6 * along.double()
        differences = (flow.inverse(u + step) - flow.inverse(u - step)) / 2e-6
    torch.testing.assert_close(tangent.double(), differences, rtol=1e-4, atol=1e-4)
