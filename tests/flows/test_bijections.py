import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian

from submanifold.flows import (
    ActNorm,
    Affine,
    AffineCoupling,
    Bijection,
    Compose,
    Glow,
    Linear,
    MaskedAffineCoupling,
    RealNVP,
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


def perturb(module, scale=0.15):
    """Move every weight away from its start; matrices by little enough to stay well conditioned."""
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, Linear)}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * scale / (len(p) ** 0.5 if id(p) in matrices else 1))
    return module


def conv_net(channels):
    return nn.Sequential(
        nn.Conv2d(channels // 2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, channels, 3, padding=1)
    )


def vector_net(dim):
    return nn.Sequential(nn.Linear(dim, 6), nn.Tanh(), nn.Linear(6, 2 * dim))


@st.composite
def glows(draw):
    levels = draw(st.integers(1, 3))
    largest = 2 if levels < 3 else 1
    height, width = (2**levels * draw(st.integers(1, largest)) for _ in range(2))
    shape = (draw(st.sampled_from([1, 3])), height, width)
    return Glow(shape, levels, draw(st.integers(1, 2)), draw(st.integers(1, 5))), shape


@st.composite
def vector_flows(draw):
    dim = draw(st.integers(1, 9))
    mask = (torch.arange(dim) % 2).float()
    return draw(
        st.sampled_from(
            [
                lambda: RealNVP(dim, draw(st.integers(1, 6)), draw(st.sampled_from([None, 3]))),
                lambda: Affine(dim),
                lambda: Linear(dim),
                lambda: ActNorm(dim),
                lambda: MaskedAffineCoupling(mask, vector_net(dim)),
                lambda: Compose([Affine(dim), RealNVP(dim, 2)]),
            ]
        )
    )(), (dim,)


@st.composite
def image_layers(draw):
    channels = 2 * draw(st.integers(1, 3))
    shape = (channels, 2 * draw(st.integers(1, 2)), 2 * draw(st.integers(1, 2)))
    layer = draw(
        st.sampled_from(
            [
                lambda: Linear(channels),
                lambda: ActNorm(channels),
                lambda: AffineCoupling(conv_net(channels)),
                lambda: Squeeze(),
                lambda: Joined(channels),
            ]
        )
    )()
    return layer, shape


@st.composite
def bijections(draw, dtypes=(torch.float32, torch.float64)):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    bijection, shape = draw(st.one_of(glows(), vector_flows(), image_layers()))
    dtype = draw(st.sampled_from(dtypes))
    return perturb(bijection).to(dtype), torch.randn(3, *shape, dtype=dtype)


def slogdet(bijection, event):
    matrix = jacobian(lambda x: bijection(x[None])[0].flatten(), event)
    return torch.linalg.slogdet(matrix.reshape(event.numel(), event.numel())).logabsdet


many = settings(max_examples=60, deadline=None, derandomize=True)


@many
@given(bijections())
def test_the_inverse_undoes_forward_and_forward_the_inverse(case):
    bijection, x = case
    tolerance = 1e-8 if x.dtype == torch.float64 else 2e-3
    z, log_det = bijection(x)
    assert z.dtype == log_det.dtype == x.dtype
    assert log_det.shape == (len(x),)
    assert z[0].numel() == x[0].numel()
    torch.testing.assert_close(bijection.inverse(z), x, rtol=tolerance, atol=tolerance)
    noise = torch.randn_like(z)
    torch.testing.assert_close(
        bijection(bijection.inverse(noise))[0], noise, rtol=tolerance, atol=tolerance
    )


@many
@given(bijections(dtypes=(torch.float64,)))
def test_the_log_det_is_that_of_the_full_jacobian(case):
    bijection, x = case
    log_det = bijection(x)[1]
    expected = torch.stack([slogdet(bijection, event) for event in x])
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(bijections(dtypes=(torch.float64,)))
def test_an_event_does_not_feel_the_others_in_its_batch(case):
    bijection, x = case
    z, log_det = bijection(x)
    for i in range(len(x)):
        alone, its_log_det = bijection(x[i : i + 1])
        torch.testing.assert_close(alone[0], z[i], rtol=0, atol=1e-10)
        torch.testing.assert_close(its_log_det[0], log_det[i], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        bijection.inverse(z[1:2])[0], bijection.inverse(z)[1], rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("build", [lambda: Glow((3, 4, 4), 2, 3, 8), lambda: RealNVP(12)])
def test_change_of_variables_of_method_md_case_6(build):
    torch.manual_seed(0)
    flow = perturb(build()).double()
    x = torch.randn(4, *flow.event_shape, dtype=torch.float64)
    z, log_det = flow(x)
    assert log_det.abs().min() > 0.01
    expected = torch.stack([slogdet(flow, event) for event in x])
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.inverse(z), x, rtol=0, atol=1e-8)


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
    for flow in (Glow((3, 8, 8), 2, 2, 4), RealNVP(6), Affine(4)):
        perturb(flow)
        z, log_det = flow(torch.randn(8, *flow.event_shape))
        (z.square().sum() - log_det.sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


@pytest.mark.parametrize("flow", [Glow((1, 4, 8), 2, 1, 3), RealNVP(5, 2), Affine(3)])
def test_a_flow_is_rebuilt_from_its_config(flow):
    again = type(flow)(**flow.config)
    again.load_state_dict(flow.state_dict())
    x = torch.randn(2, *flow.event_shape)
    assert torch.equal(again(x)[0], flow(x)[0])
