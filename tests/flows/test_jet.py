import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn

from strategies import assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.flows import Coupling, Jet, set_activation_checkpointing
from submanifold.flows.jet import Attention, attend
from submanifold.flows.jet import patch_masks as masks
from submanifold.models import Hierarchy, Stage


def small(shape=(3, 8, 8), patch=4, couplings=5, blocks=1, width=8, heads=2):
    torch.manual_seed(0)
    return Jet(shape, patch, couplings, blocks, width, heads)


@pytest.mark.parametrize("shape", [(3, 20, 18), (3, 18, 20), (1, 2, 2)])
def test_an_image_that_cannot_be_cut_into_patches_is_refused(shape):
    with pytest.raises(UserError, match=r"^patch=4: .*got \d+x\d+ pixels"):
        small(shape)


def test_a_width_that_cannot_be_cut_into_heads_is_refused():
    with pytest.raises(UserError, match=r"^heads: expected a divisor of width=8, got 3"):
        small(heads=3)


def test_the_papers_sizes_are_the_default():
    net = Jet((3, 64, 64), couplings=1).layers.bijections[1].net
    blocks = 2 * (12 * 512**2 + 13 * 512)
    ends = 9 * 48 * 512 + 512 + 256 * 512 + 2 * 512 + 512 * 96 + 96
    assert sum(p.numel() for p in net.parameters()) == blocks + ends


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 12, 20), (3, 64, 64)])
def test_a_fresh_one_is_the_scaled_cosine_transform_of_each_patch(shape):
    x = torch.randn(2, *shape, dtype=torch.float64)
    flow = small(shape, couplings=2).double()
    z, log_det = flow(x)
    channels, height, width = shape
    patches = x.view(2, channels, height // 4, 4, width // 4, 4).permute(0, 1, 3, 5, 2, 4)
    spectrum = dctn(patches.numpy(), axes=(1, 2, 3), norm="ortho")
    c, i, j = np.meshgrid(*map(np.arange, (channels, 4, 4)), indexing="ij")
    scale = 10 / 4 * (1 + c) * (0.25 + np.hypot(i, j))
    expected = torch.from_numpy(spectrum * scale[:, :, :, None, None]).flatten(1, 3)
    order = scale.ravel().argsort(kind="stable")
    torch.testing.assert_close(z, expected[:, order].flatten(1), rtol=1e-6, atol=1e-6)
    known = torch.full((2,), np.log(scale).sum() * height * width / 16, dtype=torch.float64)
    torch.testing.assert_close(log_det, known, rtol=1e-6, atol=0)


def test_the_first_latents_decode_the_smooth_part_of_an_image():
    ramp = torch.linspace(-0.5, 0.5, 16)
    smooth = (ramp[:, None] + 0.5 * ramp).expand(1, 3, 16, 16)
    flow = small((3, 16, 16))

    def missed(x, d):
        z = flow(x)[0]
        return (x - flow.inverse(F.pad(z[:, :d], (0, 768 - d)))).square().mean() / x.var()

    assert missed(smooth, 5 * 16) < 0.01
    assert missed(torch.randn(1, 3, 16, 16), 5 * 16) > 0.8


def test_the_splits_are_complementary_halves_and_take_turns():
    found = torch.stack([*masks((48, 8, 8), 40)])
    assert torch.equal(found.mean((1, 2, 3)), torch.full((40,), 0.5))
    for turn in range(8):
        first, second, third, fourth, across = found[5 * turn : 5 * turn + 5]
        assert torch.equal(first + second, torch.ones(48, 8, 8))
        assert torch.equal(third + fourth, torch.ones(48, 8, 8))
        assert torch.equal(first, first[:, :1, :1].expand(48, 8, 8))
        assert torch.equal(across, across[:1].expand(48, 8, 8))
        assert not torch.equal(first, third)
    across = found[4::5, 0]
    assert torch.equal(across[:6:2] + across[1:6:2], torch.ones(3, 8, 8))
    assert len({tuple(each.flatten().tolist()) for each in across}) == 6
    assert len({tuple(each.flatten().tolist()) for each in found[::5]}) == 8


def test_attention_is_that_of_torch():
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found, expected = attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert_close(found, expected)
    by = torch.randn_like(found)
    gradients = zip(
        torch.autograd.grad(found, (q, k, v), by),
        torch.autograd.grad(expected, (q, k, v), by),
        strict=True,
    )
    for gradient, exact in gradients:
        assert_close(gradient, exact)


def test_under_autocast_the_nets_alone_run_in_bfloat16():
    flow, x = small((3, 16, 16)), torch.rand(4, 3, 16, 16) - 0.5
    # with every net at zero, their precision cannot matter: all else has to be float32 throughout
    exact = flow(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
        back = flow.inverse(z)
    assert z.dtype == log_det.dtype == back.dtype == torch.float32
    assert torch.equal(z, exact)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)

    perturb(flow, 0.05)
    seen = {Attention: set(), Coupling: set()}
    for module in flow.modules():
        for kind in seen:
            if isinstance(module, kind):
                module.register_forward_hook(
                    lambda _module, _x, out, kind=kind: seen[kind].add(
                        (out if isinstance(out, torch.Tensor) else out[0]).dtype
                    )
                )
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
    assert seen == {Attention: {torch.bfloat16}, Coupling: {torch.float32}}
    assert z.dtype == log_det.dtype == torch.float32
    exact, exact_log_det = flow(x)
    assert not torch.equal(z, exact)
    torch.testing.assert_close(z, exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(log_det, exact_log_det, atol=1.0, rtol=1e-2)


@pytest.mark.parametrize("activation_checkpointing", [True, False])
def test_it_trains_the_same_way_in_bfloat16(activation_checkpointing):
    flow, x = perturb(small((3, 16, 16), width=16), 0.1), torch.rand(8, 3, 16, 16) - 0.5
    set_activation_checkpointing(flow, activation_checkpointing)

    def gradient(bfloat16):
        flow.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, bfloat16):
            z, log_det = flow(x)
            back = flow.inverse(F.pad(z[:, :100], (0, 668)))
        loss = (0.5 * z.square().sum(1) - log_det).mean() + 300 * (x - back).square().mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in flow.parameters()])

    loss, exact = gradient(bfloat16=False)
    rounded_loss, rounded = gradient(bfloat16=True)
    assert rounded_loss == pytest.approx(loss, rel=2e-3)
    assert torch.cosine_similarity(rounded, exact, dim=0) > 0.999


def test_its_derivatives_can_be_taken_forward():
    flow, x = perturb(small()).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    along = torch.randn_like(x)
    z, tangent = torch.func.jvp(lambda x: flow(x)[0], (x,), (along,))
    step = 1e-6 * along
    expected = (flow(x + step)[0] - flow(x - step)[0]) / 2e-6
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)
    _, back = torch.func.jvp(flow.inverse, (z,), (tangent,))
    assert_close(back, along)


def test_a_saved_one_is_loaded_as_it_was(tmp_path):
    saved = Hierarchy([Stage(perturb(small()), 50)])
    saved.save(tmp_path / "model.safetensors")
    loaded, x = Hierarchy.load(tmp_path / "model.safetensors"), torch.randn(2, 3, 8, 8)
    assert loaded.stages[0].config == saved.stages[0].config
    assert torch.equal(loaded.log_prob(x), saved.log_prob(x))
    assert torch.equal(loaded.project(x), saved.project(x))
    assert math.prod(loaded.event_shape) == 192
