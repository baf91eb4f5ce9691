"""The map that spreads the noise of black pixels."""

import math

import numpy as np
import pytest
import scipy
import torch

from submanifold.data import dequantize
from submanifold.flows import Glow, initialize
from submanifold.flows.black_level import MASS, BlackLevel

LEVEL = BlackLevel(8.0)


def test_log_determinants_are_those_of_the_derivative():
    x = torch.linspace(-0.6, 0.6, 2001, dtype=torch.float64)[:, None].requires_grad_()
    z, log_det = LEVEL(x)
    (slopes,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(log_det, slopes[:, 0].log())
    assert (z.diff(dim=0) > 0).all()
    assert log_det[-1] == 0, "bright pixels stay as they are"
    torch.testing.assert_close(z[-1], x[-1])


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float64, 1e-12), (torch.float32, 1e-7)])
def test_all_numbers_are_inverted(dtype, largest):
    values = [-1e3, -0.7, -0.5, -0.5 + 1e-8, -0.499, -0.4961, -0.496, 0.0, 7.0]
    x = torch.tensor(values, dtype=dtype)
    error = (LEVEL.inverse(LEVEL(x[:, None])[0])[:, 0] - x).abs() / x.abs().clamp_min(1)
    assert error.max() < largest


def test_all_latents_are_decoded():
    z = torch.tensor([-1e4, -1.0, -0.6, -0.49, 3.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(LEVEL(LEVEL.inverse(z))[0], z)


def test_the_noise_of_black_pixels_is_normal_without_its_right_tail():
    """Apart from 1% on the left."""
    black = torch.zeros(1, 1, 200, 200, dtype=torch.uint8)
    x = dequantize(black, torch.Generator().manual_seed(0)).double()
    y = 256 * (LEVEL(x)[0].flatten().numpy() + 0.5)
    end = scipy.stats.norm.ppf(MASS)
    expected = scipy.stats.truncnorm(-math.inf, end, loc=1 - 8 * end, scale=8)
    shown = np.linspace(0.02, 0.999, 50)
    np.testing.assert_allclose(np.quantile(y, shown), expected.ppf(shown), atol=0.2)


def test_a_flow_of_black_images_has_their_density_at_once():
    """A normal base is 0.25 bits above uniform noise, and a normal one without its tail 0.02."""
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    x = dequantize(images, torch.Generator().manual_seed(0))
    bits = []
    for spread in (None, 8.0):
        torch.manual_seed(0)
        flow = Glow((1, 8, 8), 1, 1, width=4, black_spread=spread)
        initialize(flow, x)
        with torch.no_grad():
            z, log_det = flow(x)
        nats = 0.5 * (z.square() + math.log(2 * math.pi)).sum(1) - log_det
        bits.append(float(nats.mean()) / 64 / math.log(2) + 8)
    assert bits == pytest.approx([0.255, 0.02], abs=0.03)
