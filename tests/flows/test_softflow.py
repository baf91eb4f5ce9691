import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import assert_close, perturb, slogdet
from submanifold.flows import (
    SoftGlow,
    SoftRealNVP,
    noise_conditioning,
)
from submanifold.losses import Objective
from submanifold.losses.terms import Likelihood
from submanifold.models import Hierarchy, Stage


def flows():
    torch.manual_seed(0)
    vectors, images = SoftRealNVP(4, couplings=3, hidden=8), SoftGlow((3, 8, 8), 2, 1, 6)
    return [(vectors, torch.randn(3, 4)), (images, torch.randn(3, 3, 8, 8))]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.lists(st.floats(0, 1), min_size=3, max_size=3), st.booleans())
def test_flow_is_a_bijection_at_every_noise_scale(seed, scales, of_images):
    flow, x = flows()[of_images]
    torch.manual_seed(seed)
    flow, x, scale = perturb(flow, 0.5).double(), x.double(), torch.tensor(scales).double()
    with noise_conditioning(flow, scale):
        z, log_det = flow(x)
        assert_close(flow.inverse(z), x)
    for number in range(3 if not of_images else 0):
        event = x[number : number + 1]

        def of(e, s=scale[number]):
            with noise_conditioning(flow, s.expand(len(e))):
                return flow(e)[0]

        assert_close(log_det[number : number + 1], slogdet(of, event))


@pytest.mark.parametrize("number", [0, 1])
def test_noise_scale_applies_inside_the_context_only(number):
    flow, x = flows()[number]
    perturb(flow, 0.5)
    clean = flow(x)[0]
    with noise_conditioning(flow, torch.zeros(3)):
        assert torch.equal(flow(x)[0], clean)
    with noise_conditioning(flow, torch.tensor([0.0, 0.5, 1.0])):
        noisy = flow(x)[0]
    assert torch.equal(noisy[0], clean[0])
    assert not torch.isclose(noisy[1:], clean[1:]).flatten(1).all(1).any()
    assert torch.equal(flow(x)[0], clean)


def test_trained_flow_has_the_density_of_each_noise_scale():
    """Points on a line: at the scale s, the density off the line is N(0, (0.1 s)^2)."""
    torch.manual_seed(0)
    flow = SoftRealNVP(2, couplings=6, hidden=32, mixing=True)
    model = Hierarchy([Stage(flow, 2)])
    objective = Objective({"likelihood": Likelihood()}, input_noise=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        x = torch.randn(256, 1, generator=generator) * torch.tensor([[1.0, 0.0]])
        loss = objective(model, x, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stds = {}
    for scale in (0.2, 1.0):
        with noise_conditioning(model, torch.full((4000,), scale)), torch.no_grad():
            drawn = model.decode(torch.randn(4000, 2, generator=generator))
        stds[scale] = drawn[:, 1].std().item()
    assert stds[1.0] == pytest.approx(0.1, rel=0.2)
    assert stds[0.2] < 0.05
