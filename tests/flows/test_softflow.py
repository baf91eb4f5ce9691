import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import assert_close, perturb, slogdet
from submanifold.common.errors import UserError
from submanifold.flows import (
    Glow,
    RealNVP,
    SoftGlow,
    SoftRealNVP,
    noise_conditioning,
    set_activation_checkpointing,
)
from submanifold.flows.softflow import NoiseConditional
from submanifold.losses import Objective
from submanifold.losses.terms import Likelihood
from submanifold.models import Hierarchy, Stage


def flows():
    torch.manual_seed(0)
    vectors, images = SoftRealNVP(4, couplings=3, hidden=8), SoftGlow((3, 8, 8), 2, 1, 6)
    return [(vectors, torch.randn(3, 4)), (images, torch.randn(3, 3, 8, 8))]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.lists(st.floats(0, 1), min_size=3, max_size=3), st.booleans())
def test_at_every_scale_it_is_a_bijection(seed, scales, of_images):
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
def test_it_is_told_only_while_it_is_told(number):
    flow, x = flows()[number]
    perturb(flow, 0.5)
    quiet = flow(x)[0]
    with noise_conditioning(flow, torch.zeros(3)):
        assert torch.equal(flow(x)[0], quiet)
    with noise_conditioning(flow, torch.tensor([0.0, 0.5, 1.0])):
        loud = flow(x)[0]
    assert torch.equal(loud[0], quiet[0])
    assert not torch.isclose(loud[1:], quiet[1:]).flatten(1).all(1).any()
    assert torch.equal(flow(x)[0], quiet)


@pytest.mark.parametrize(("plain", "soft", "arguments"), [
    (RealNVP, SoftRealNVP, {"dim": 4, "couplings": 2}),
    (Glow, SoftGlow, {"shape": (1, 4, 4), "levels": 1, "steps": 1, "width": 4}),
])  # fmt: skip
def test_its_settings_are_those_of_the_plain_flow(plain, soft, arguments):
    made = soft(**arguments)
    assert made.config == plain(**arguments).config
    again = soft(**made.config)
    again.load_state_dict(made.state_dict())
    told = [each for each in made.modules() if isinstance(each, NoiseConditional)]
    assert len(told) == (2 if plain is RealNVP else 1)


def test_the_hidden_layers_cannot_be_computed_again():
    with pytest.raises(UserError, match="activation_checkpointing: expected false"):
        set_activation_checkpointing(flows()[0][0], True)
    set_activation_checkpointing(flows()[0][0], False)


def test_the_noise_has_another_scale_for_each_event():
    flow = SoftRealNVP(4, couplings=2, hidden=8)
    seen = []
    tell = next(each for each in flow.modules() if isinstance(each, NoiseConditional))
    tell.register_forward_hook(lambda module, *_: seen.append(module.scale))
    model, x = Hierarchy([Stage(flow, 4)]), torch.zeros(5000, 4)
    objective = Objective({"likelihood": Likelihood()}, input_noise=0.1)
    noisy = []
    model.register_forward_pre_hook(lambda _, args: noisy.append(args[0]))
    trace = model.trace
    model.trace = lambda x, draw: noisy.append(x) or trace(x, draw)
    objective(model, x, torch.Generator().manual_seed(0))
    scale, drawn = seen[0], noisy[0]
    assert 0 <= scale.min() < 0.01 < 0.99 < scale.max() <= 1
    each = drawn / (0.1 * scale[:, None])
    assert each.std().item() == pytest.approx(1, abs=0.03)
    # alike for small and large scales: the flow is told the truth
    assert each[scale < 0.1].std().item() == pytest.approx(1, abs=0.1)


def test_without_noise_it_learns_how_thin_the_data_are():
    """Points on a line: told the scale s, the density off it is N(0, (0.1 s)^2)."""
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
    spread = {}
    for scale in (0.2, 1.0):
        with noise_conditioning(model, torch.full((4000,), scale)), torch.no_grad():
            drawn = model.decode(torch.randn(4000, 2, generator=generator))
        spread[scale] = drawn[:, 1].std().item()
    assert spread[1.0] == pytest.approx(0.1, rel=0.2)
    assert spread[0.2] < 0.05
