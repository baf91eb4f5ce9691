import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strategies import DTYPES, assert_close, glows, jets, perturb, realnvps, slogdet
from submanifold import flows
from submanifold.flows import (
    ActNorm,
    Affine,
    AffineCoupling,
    Bijection,
    Compose,
    Coupling,
    Flow,
    Gaussianization,
    Glow,
    Injection,
    Jet,
    Linear,
    MaskedAffineCoupling,
    MixtureOfLogistics,
    RealNVP,
    Reflections,
    Rotation,
    SoftGlow,
    SoftRealNVP,
    Split,
    Squeeze,
)


class Joined(Bijection):
    """A split whose two outputs are one tensor again."""

    def __init__(self, channels):
        super().__init__()
        self.split = Split(channels)

    def forward(self, x):
        kept, latent, log_det = self.split(x)
        return torch.cat([kept, latent], 1), log_det

    def inverse(self, z):
        return self.split.inverse(*z.chunk(2, 1))


def image_coupling(channels):
    net = nn.Conv2d(channels // 2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, channels, 1)
    return AffineCoupling(nn.Sequential(*net))


def vector_coupling(mask):
    net = nn.Linear(len(mask), 6), nn.Tanh(), nn.Linear(6, 2 * len(mask))
    return MaskedAffineCoupling(mask, nn.Sequential(*net))


def rotated(dim, directions):
    rotation = Rotation(dim, directions).double()
    axes = torch.randn(dim, directions or dim, dtype=torch.float64)
    rotation.fit(torch.linalg.qr(axes).Q, torch.ones(dim))
    return rotation


few = st.integers(1, 3)
dims = st.integers(1, 9)
sides = st.tuples(few, few)
masks = st.lists(st.booleans(), min_size=1, max_size=9)


def squeezed(layers, c, h, w):
    return Compose([Squeeze(), *(layer(4 * c) for layer in layers)]), (c, 2 * h, 2 * w)


layers = st.permutations([ActNorm, Linear, Joined, image_coupling])
# how to draw each, with the shape that it acts on where it does not say so itself
KINDS = {
    ActNorm: st.builds(lambda c, s: (ActNorm(c), (c, *s)), dims, sides | st.just(())),
    Linear: st.builds(lambda c, s: (Linear(c), (c, *s)), dims, sides | st.just(())),
    AffineCoupling: st.builds(lambda c, s: (image_coupling(2 * c), (2 * c, *s)), few, sides),
    MaskedAffineCoupling: masks.map(lambda mask: (vector_coupling(mask), (len(mask),))),
    Squeeze: st.builds(squeezed, st.just([]), few, few, few),
    Split: st.builds(lambda c, s: (Joined(2 * c), (2 * c, *s)), few, sides),
    Compose: st.builds(squeezed, layers, few, few, few),
    Glow: glows(),
    Jet: jets(),
    RealNVP: dims.flatmap(realnvps),
    Affine: st.builds(Affine, dims),
    Rotation: st.builds(rotated, dims, st.none() | st.just(1)),
    Reflections: st.builds(lambda d, n: (Reflections(d, n), (d,)), dims, few),
    MixtureOfLogistics: st.builds(lambda d, k: (MixtureOfLogistics(d, k), (d,)), dims, few),
    SoftGlow: st.builds(SoftGlow, st.just((3, 4, 4)), few.map(lambda n: min(n, 2)), few, few),
    SoftRealNVP: st.builds(SoftRealNVP, dims, few),
    Gaussianization: st.builds(Gaussianization, dims, few, few),
}


@st.composite
def bijections(draw, kind):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    drawn = draw(KINDS[kind])
    bijection, shape = (drawn, drawn.event_shape) if isinstance(drawn, Flow) else drawn
    dtype = draw(st.sampled_from(DTYPES))
    return perturb(bijection).to(dtype), torch.randn(draw(few), *shape, dtype=dtype)


some = settings(max_examples=20, deadline=None, derandomize=True)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def test_every_bijection_there_is_is_among_those_drawn():
    modules = {c for c in vars(flows).values() if isinstance(c, type) and issubclass(c, nn.Module)}
    bijections = {each for each in modules if not issubclass(each, Injection)}
    assert bijections - {Bijection, Coupling, Flow, flows.DataInitialized} == set(KINDS)


@every_kind
@some
@given(st.data())
def test_the_inverse_undoes_forward_and_forward_the_inverse(kind, data):
    bijection, x = data.draw(bijections(kind))
    z, log_det = bijection(x)
    assert z.dtype == log_det.dtype == x.dtype
    assert log_det.shape == (len(x),)
    assert z[0].numel() == x[0].numel()
    assert_close(bijection.inverse(z), x)
    noise = torch.randn_like(z)
    assert_close(bijection(bijection.inverse(noise))[0], noise)


@every_kind
@some
@given(st.data())
def test_the_log_det_is_that_of_the_full_jacobian(kind, data):
    bijection, x = data.draw(bijections(kind))
    double = copy.deepcopy(bijection).double()
    assert_close(bijection(x)[1], slogdet(lambda x: double(x)[0], x.double()))


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_a_realnvp_starts_as_the_identity(dim):
    x = torch.randn(5, dim)
    z, log_det = RealNVP(dim)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(5))


def test_a_realnvp_of_dimension_one_learns_a_scale_and_a_shift():
    flow = perturb(RealNVP(1), 0.5)
    z, log_det = flow(torch.tensor([[0.0], [1.0], [2.0]]))
    torch.testing.assert_close(z[2] - z[1], z[1] - z[0])
    torch.testing.assert_close((z[1] - z[0]).log().expand(3), log_det)


def test_the_masks_of_a_realnvp_let_every_coordinate_change():
    x = torch.randn(4, 5)
    assert ((perturb(RealNVP(5, couplings=2))(x)[0] - x).abs() > 1e-6).all()
    half = (perturb(RealNVP(5, couplings=1))(x)[0] - x).abs() > 1e-6
    assert half[:, ::2].all()
    assert not half[:, 1::2].any()


def test_what_a_mask_hides_is_not_multiplied_and_makes_no_difference():
    torch.manual_seed(0)
    coupling, x = perturb(RealNVP(5, couplings=1)).bijections[0], torch.randn(4, 5)
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    raw, shift = coupling.net(x * mask).chunk(2, 1)
    log_scale = 2 * torch.tanh(raw / 2) * (1 - mask)
    expected = x * log_scale.exp() + shift * (1 - mask), log_scale.sum(1)
    parameters = [*coupling.parameters()]
    for value, exact in zip(coupling(x), expected, strict=True):
        assert_close(value, exact)
        gradients = torch.autograd.grad(value.square().sum(), parameters, retain_graph=True)
        exact_ones = torch.autograd.grad(exact.square().sum(), parameters, retain_graph=True)
        for gradient, exact_one in zip(gradients, exact_ones, strict=True):
            assert_close(gradient, exact_one)


def test_a_coupling_scales_by_no_more_than_e_squared_whatever_its_net_says():
    net = nn.Conv2d(1, 2, 1)
    nn.init.constant_(net.weight, 0)
    nn.init.constant_(net.bias, 1e4)
    _, log_det = AffineCoupling(net)(torch.zeros(1, 2, 1, 1))
    assert log_det.item() == pytest.approx(2)


def test_a_linear_map_starts_as_a_rotation():
    torch.manual_seed(0)
    weight = Linear(9).weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(9), rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter_of_a_perturbed_flow():
    torch.manual_seed(0)
    for flow in (Glow((3, 8, 8), 2, 2, 4), Jet((3, 8, 8), 4, 2, 1, 4, 2), RealNVP(6), Affine(4)):
        perturb(flow)
        z, log_det = flow(torch.randn(8, *flow.event_shape))
        (z.square().sum() - log_det.sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())
