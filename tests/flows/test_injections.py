"""Trumpets and autoencoders: their initialization, and what they learn from known distributions."""

import math

import pytest
import torch

from submanifold.common.errors import UserError
from submanifold.flows import Autoencoder, Trumpet, initialize
from submanifold.flows.injective import principal_directions

VARIANCES = torch.tensor([4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025], dtype=torch.float64)


def reconstruction_error(flow, x):
    return (flow.inverse(flow(x)[0]) - x).square().mean()


def train(flow, x, steps):
    optimizer = torch.optim.Adam(flow.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for step in range(steps):
        optimizer.zero_grad()
        reconstruction_error(flow, x.roll(-256 * step, 0)[:256]).backward()
        optimizer.step()
        schedule.step()


def linear_gaussian(samples):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    z = torch.randn(samples, 8, generator=generator, dtype=torch.float64)
    return z * VARIANCES.sqrt() @ axes


def half_circle(samples):
    angle = math.pi * torch.rand(samples)
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("flow", [Trumpet, Autoencoder])
def test_odd_image_sizes_raise(flow):
    with pytest.raises(UserError, match="divisible by 2, got 7x8 pixels"):
        flow((1, 7, 8), 5)


@pytest.mark.parametrize("flow", [Trumpet, Autoencoder])
def test_training_without_initialization_finds_the_principal_components(flow):
    torch.manual_seed(0)
    x = linear_gaussian(20000)
    flow = flow((8,), 3, width=16).double()
    train(flow, x[:10000], 400)
    with torch.no_grad():
        error = reconstruction_error(flow, x[10000:]).item()
    assert error == pytest.approx(VARIANCES[3:].sum().item() / 8, rel=0.03)


@pytest.mark.parametrize("flow", [Trumpet, Autoencoder])
def test_initialization_is_principal_component_analysis(flow):
    torch.manual_seed(0)
    x = linear_gaussian(4000)
    flow = flow((8,), 3).double()
    initialize(flow, x)
    best = torch.linalg.svdvals(x - x.mean(0))[3:].square().sum() / x.numel()
    assert reconstruction_error(flow, x) < 1.001 * best
    u = flow(x)[0]
    torch.testing.assert_close(u.T.cov(), torch.eye(3).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(u.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 8, 8), (1, 2, 6), (3, 12, 20)])
def test_untrained_autoencoder_is_a_linear_isometry(shape):
    torch.manual_seed(0)
    dim = min(5, math.prod(shape))
    flow = Autoencoder(shape, dim, width=4).double()
    u = torch.randn(dim, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda u: flow.inverse(u[None]).flatten())(u)
    torch.testing.assert_close(jacobian.T @ jacobian, torch.eye(dim).double(), rtol=0, atol=1e-5)


def test_autoencoder_initialized_from_few_images_reconstructs_low_frequencies():
    torch.manual_seed(0)
    waves = [torch.cos(math.pi * k * (torch.arange(16) + 0.5) / 16) for k in range(4)]
    basis = torch.stack([torch.outer(a, b) for a in waves for b in waves])
    x = torch.einsum("bk,khw->bhw", torch.randn(108, 16), basis)[:, None]
    x = x + 0.01 * torch.randn(x.shape)
    flow = Autoencoder((1, 16, 16), 16, width=4)
    initialize(flow, x[:8])
    with torch.no_grad():
        assert reconstruction_error(flow, x[8:]) < 1.5 * 0.01**2


def test_autoencoder_learns_a_half_circle_and_its_left_inverse():
    torch.manual_seed(0)
    flow = Autoencoder((2,), 1, width=32)
    x = half_circle(4096)
    initialize(flow, x)
    train(flow, x, 600)
    with torch.no_grad():
        test = half_circle(1000)
        assert (2 * reconstruction_error(flow, test)).sqrt() < 0.02
        u = flow(test)[0]
        assert (flow(flow.inverse(u))[0] - u).square().mean().sqrt() < 0.05 * u.std()


@pytest.mark.parametrize(
    ("shape", "dim", "inner_shape"),
    [
        ((3, 32, 32), 64, (192, 1, 1)),
        ((3, 32, 32), 500, (24, 8, 8)),
        ((3, 32, 32), 3000, (12, 16, 16)),
        ((1, 6, 6), 2, (2, 3, 3)),
        ((8,), 3, (8,)),
    ],
)
def test_trumpet_halves_channels_while_twice_dim_remain(shape, dim, inner_shape):
    with torch.device("meta"):
        assert Trumpet(shape, dim, steps=1, width=4).inner_shape == inner_shape


def test_initialized_trumpet_reconstructs_smooth_images():
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 8)
    x = torch.randn(512, 3, 1, 1) + torch.randn(512, 1, 1, 1) * ramp
    x = x + 0.01 * torch.randn(512, 3, 8, 8)
    flow = Trumpet((3, 8, 8), 4, steps=2, width=4)
    initialize(flow, x)
    assert reconstruction_error(flow, x) < 1.5 * 0.01**2


@pytest.mark.parametrize("samples", [4, 400])
def test_principal_directions_from_few_samples_select_the_largest_coordinates(samples):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.linspace(2, -2, 40).exp()
    x = sizes * torch.randn(samples, 40, generator=generator)
    columns, deviations = principal_directions(x, 20)
    torch.testing.assert_close(columns.T @ columns, torch.eye(20).double())
    assert (deviations / sizes[:20] < 3).all()
    assert (deviations / sizes[:20] > 1 / 3).all()
    kept = (sizes.double()[:, None] * columns).square().sum() / sizes.square().sum()
    assert kept > 0.95  # twenty random directions: 0.5
