"""Autoencoders: where they start, what they learn, and the derivatives that their volume needs."""

import math

import pytest
import torch
from torch.autograd import forward_ad

from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.flows import initialize
from submanifold.flows.autoencoder import Autoencoder
from submanifold.flows.orthogonal import dct as spectrum

VARIANCES = torch.tensor([4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025], dtype=torch.float64)
LEAST = VARIANCES[3:].sum().item() / 8
SHAPES = [(1,), (7,), (3, 8, 8), (1, 2, 6), (3, 12, 20)]


def missed(flow, x):
    return (flow.inverse(flow(x)[0]) - x).square().mean()


def train(flow, x, steps, rate):
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for step in range(steps):
        optimizer.zero_grad()
        missed(flow, x.roll(-256 * step, 0)[:256]).backward()
        optimizer.step()
        schedule.step()


def linear_gaussian(rows):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    return torch.randn(rows, 8, generator=generator, dtype=torch.float64) * VARIANCES.sqrt() @ turn


def half_circle(rows):
    angle = math.pi * torch.rand(rows)
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_precision(shape, dtype):
    dim = min(5, math.prod(shape))
    flow = perturb(Autoencoder(shape, dim, width=4)).to(dtype)
    x = torch.randn(3, *shape, dtype=dtype)
    u, log_det = flow(x)
    assert u.shape == (3, dim)
    assert log_det.shape == (3,)
    assert log_det.isnan().all()
    assert flow.inverse(u).shape == x.shape
    assert u.dtype == log_det.dtype == flow.inverse(u).dtype == dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fresh_one_is_a_linear_projection(shape):
    torch.manual_seed(0)
    dim = min(5, math.prod(shape))
    flow = Autoencoder(shape, dim, width=4).double()
    u = torch.randn(3, dim, dtype=torch.float64)
    torch.testing.assert_close(flow(flow.inverse(u))[0], u)
    jacobian = torch.func.jacfwd(lambda u: flow.inverse(u[None]).flatten())(u[0])
    torch.testing.assert_close(jacobian.T @ jacobian, torch.eye(dim).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 6), (3, 8, 8)])
def test_the_spectrum_is_an_orthogonal_map(shape):
    x = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(spectrum(spectrum(x), inverse=True), x)
    torch.testing.assert_close(spectrum(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


def test_an_image_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="got 7x8 pixels"):
        Autoencoder((1, 7, 8), 5)


@pytest.mark.parametrize("shape", [(7,), (1, 8, 8)])
def test_its_config_rebuilds_it(shape):
    flow = perturb(Autoencoder(shape, 5, width=4))
    again = Autoencoder(**flow.config)
    again.load_state_dict(flow.state_dict())
    u = torch.randn(2, 5)
    assert torch.equal(again.inverse(u), flow.inverse(u))


@pytest.mark.parametrize("shape", [(7,), (3, 8, 8)])
def test_gradients_are_finite_and_reach_every_parameter(shape):
    torch.manual_seed(0)
    flow, x = Autoencoder(shape, 5, width=4), torch.randn(16, *shape)
    initialize(flow, x)
    missed(perturb(flow), x).backward()
    for p in flow.parameters():
        assert p.grad.isfinite().all()
        assert p.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(7,), (3, 8, 8)])
def test_the_decoder_has_forward_derivatives(shape):
    torch.manual_seed(0)
    flow = perturb(Autoencoder(shape, 5, width=4), 0.5).double()
    u, along = torch.randn(2, 3, 5, dtype=torch.float64)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(flow.inverse(forward_ad.make_dual(u, along))).tangent
    with torch.no_grad():
        step = 1e-5 * along
        differences = (flow.inverse(u + step) - flow.inverse(u - step)) / 2e-5
    torch.testing.assert_close(tangent, differences, rtol=1e-6, atol=1e-6)


def test_autocast_leaves_what_is_linear_in_full_precision():
    torch.manual_seed(0)
    flow, x = Autoencoder((1, 8, 8), 5, width=4), torch.randn(4, 1, 8, 8)
    u = flow(x)[0]
    with torch.autocast("cpu", torch.bfloat16):  # untrained nets give zeros
        assert torch.equal(flow(x)[0], u)
        torch.testing.assert_close(flow(flow.inverse(u))[0], u, rtol=0, atol=1e-5)


def test_set_from_few_images_it_keeps_what_is_smooth():
    torch.manual_seed(0)
    waves = [torch.cos(math.pi * k * (torch.arange(16) + 0.5) / 16) for k in range(4)]
    basis = torch.stack([torch.outer(a, b) for a in waves for b in waves])
    x = torch.einsum("bk,khw->bhw", torch.randn(108, 16), basis)[:, None]
    x = x + 0.01 * torch.randn(x.shape)
    flow = Autoencoder((1, 16, 16), 16, width=4)
    initialize(flow, x[:8])
    with torch.no_grad():
        assert missed(flow, x[8:]) < 1.5 * 0.01**2


def test_trained_without_data_to_start_from_it_finds_the_principal_components():
    torch.manual_seed(0)
    x = linear_gaussian(20000)
    flow = Autoencoder((8,), 3, width=16).double()
    train(flow, x[:10000], 400, 0.01)
    with torch.no_grad():
        assert missed(flow, x[10000:]).item() == pytest.approx(LEAST, rel=0.03)


def test_it_learns_half_a_circle_and_its_left_inverse():
    torch.manual_seed(0)
    flow = Autoencoder((2,), 1, width=32)
    x = half_circle(4096)
    initialize(flow, x)
    train(flow, x, 600, 0.01)
    with torch.no_grad():
        test = half_circle(1000)
        assert (2 * missed(flow, test)).sqrt() < 0.02
        u = flow(test)[0]
        assert (flow(flow.inverse(u))[0] - u).square().mean().sqrt() < 0.05 * u.std()
