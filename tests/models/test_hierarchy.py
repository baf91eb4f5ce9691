import math
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from strategies import assert_close, hierarchies
from submanifold.data.batches import dequantize
from submanifold.evaluation.integral import dense_log_det
from submanifold.flows import Conformal, Flow
from submanifold.models import Hierarchy, Stage
from submanifold.models.model import bits_per_dim

many = settings(max_examples=40, deadline=None, derandomize=True)
few = settings(many, max_examples=20)


def flat(hierarchy, x):
    """Compose the flows of all stages: u, then every v, the innermost first."""
    off = []
    for stage in hierarchy.stages:
        z, _ = stage.flows[0](x)
        x, v = z[:, : stage.dim], z[:, stage.dim :]
        off.insert(0, v)
    return torch.cat([x, *off], 1)


def scales(hierarchy):
    """Standard deviation of each column of :func:`flat`."""
    off = [[s.off_manifold_scale] * (s.event_dim - s.dim) for s in reversed(hierarchy.stages)]
    return torch.tensor([*[1.0] * hierarchy.dim, *chain(*off)], dtype=torch.float64)


@many
@given(hierarchies(dtypes=[torch.float64]))
def test_the_density_follows_from_the_change_of_variables(case):
    hierarchy, x = case
    u, v, log_prob = hierarchy(x)
    z = flat(hierarchy, x)
    assert torch.equal(torch.cat([u, v], 1), z)
    assert u.shape[1] == hierarchy.dim
    normal = norm.logpdf(z.detach().numpy(), scale=scales(hierarchy).numpy()).sum(1)
    log_det = dense_log_det(lambda x: (flat(hierarchy, x),), x)
    assert_close(log_prob, log_det + torch.from_numpy(normal))


@few
@given(hierarchies(), st.floats(0, 2), st.integers(0, 2**31))
def test_samples_decode_scaled_draws_of_the_generator(case, temperature, seed):
    hierarchy, x = case
    samples = hierarchy.sample(6, temperature, torch.Generator().manual_seed(seed))
    assert samples.dtype == x.dtype
    u, v = hierarchy.encode(samples)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(6, hierarchy.dim, generator=generator, dtype=x.dtype)
    expected = torch.cat([temperature * drawn, torch.zeros_like(v)], 1)
    assert_close(torch.cat([u, v], 1), expected)


class Uniform(Flow):
    """Maps the uniform density on [-0.5, 0.5) to the normal density, or only flattens."""

    def __init__(self, shape, flatten=False):
        super().__init__()
        self.event_shape, self.flatten = shape, flatten
        self.register_parameter("anchor", torch.nn.Parameter(torch.zeros((), dtype=torch.float64)))

    def forward(self, x, context=None):
        z = x.flatten(1)
        if self.flatten:
            return z, x.new_zeros(len(x))
        z = math.sqrt(2) * torch.erfinv(2 * z)
        return z, (0.5 * z.square() + 0.5 * math.log(2 * math.pi)).sum(1)


def test_random_bytes_have_known_bits_per_dim():
    pixels = torch.randint(
        0, 256, (2000, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    x = dequantize(pixels, torch.Generator().manual_seed(4)).double()
    exact = Hierarchy([Stage(Uniform((3, 8, 8)), 100)]).bits_per_dim(x)
    assert exact.detach().numpy() == pytest.approx(8, abs=1e-9)
    normal = Hierarchy([Stage(Uniform((3, 8, 8), flatten=True), 192)]).bits_per_dim(x)
    # the variance of x^2 / (2 log 2) for a uniform x
    error = math.sqrt((1 / 80 - 1 / 144) / x.numel()) / (2 * math.log(2))
    assert normal.mean().item() == pytest.approx(9.38586, abs=4 * error + 1e-5)


def test_images_add_eight_bits_by_default_and_vectors_none():
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    images, vectors = (
        Hierarchy([Stage(Uniform(shape, flatten=True), 12)]) for shape in ((3, 2, 2), (12,))
    )
    zero = 0.5 * math.log2(2 * math.pi)
    assert images.bits_per_dim(x).item() == pytest.approx(8 + zero)
    assert vectors.bits_per_dim(x.flatten(1)).item() == pytest.approx(zero)
    assert bits_per_dim(-12 * math.log(2), 12, 5) == pytest.approx(6)


def test_bits_of_an_injection_are_those_of_its_coordinates():
    images = Hierarchy([Stage(Conformal((3, 2, 2), 5), 5)])
    log_prob = math.log(2) * torch.tensor([-5.0, 10.0])
    assert images.to_bits_per_dim(log_prob).tolist() == pytest.approx([1, -2])
