import pytest
import torch
from torch import nn

from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.flows import (
    Affine,
    AffineCoupling,
    Glow,
    Linear,
    RealNVP,
    initialize,
)


def parameter_count(module):
    return sum(p.numel() for p in module.parameters())


def test_paper_sizes_give_the_paper_numbers_of_parameters():
    with torch.device("meta"):
        glow, realnvp = Glow((3, 32, 32), levels=3, steps=32, width=512), RealNVP(500)
    assert 43.9e6 <= parameter_count(glow) <= 44.0e6
    assert round(parameter_count(realnvp) / 1e6, 1) == 15.0


@pytest.mark.parametrize("shape", [(3, 20, 16), (3, 16, 20), (1, 3, 3)])
def test_indivisible_image_sizes_raise(shape):
    with pytest.raises(UserError, match=r"^levels=3: .*divisible by 8"):
        Glow(shape, levels=3, steps=1, width=2)


def test_steps_are_set_per_level():
    glow = Glow((3, 16, 16), 3, [3, 1, 2], 4)
    assert [len(level.bijections) - 1 for level in glow.levels] == [3, 1, 2]
    with pytest.raises(UserError, match=r"^steps: expected one number or 3, one per level"):
        Glow((3, 16, 16), 3, [3, 1], 4)


def test_latents_are_ordered_from_the_coarsest_level():
    torch.manual_seed(0)
    glow = Glow((1, 8, 8), levels=3, steps=1, width=2)
    image = torch.randn(1, 8, 8)
    support = torch.autograd.functional.jacobian(lambda x: glow(x[None])[0][0], image) != 0
    # the 3x3 convolutions start at zero: a latent of level l depends on 2^l x 2^l pixels
    rows, columns = support[:, 0].any(2).sum(1), support[:, 0].any(1).sum(1)
    expected = torch.tensor([8] * 16 + [4] * 16 + [2] * 32)
    assert torch.equal(rows, expected)
    assert torch.equal(columns, expected)


def test_initialization_normalizes_the_input_of_every_matrix():
    torch.manual_seed(0)
    glow = perturb(Glow((3, 16, 16), 2, 3, 8))
    x = 3 + 2 * torch.randn(32, 3, 16, 16) * torch.rand(1, 3, 16, 1)
    initialize(glow, x)
    outputs = []
    for module in glow.modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(
                lambda module, args: outputs.append(module.norm(*args)[0])
            )
    glow(x)
    assert len(outputs) == 6
    for z in outputs:
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0)
        torch.testing.assert_close(std, torch.ones_like(std), atol=1e-3, rtol=0)


def test_initialization_whitens_the_first_step_of_a_level_by_principal_components():
    torch.manual_seed(0)
    glow = Glow((3, 16, 16), 2, 2, 8)
    x = torch.randn(64, 3, 16, 16).cumsum(2).cumsum(3)
    initialize(glow, x)
    outputs = []
    for level in glow.levels:
        level.bijections[1].bijections[0].register_forward_hook(
            lambda linear, args, out: outputs.append((linear, args[0], out[0]))
        )
    glow(x)
    for linear, before, z in outputs:
        z = z.movedim(1, -1).flatten(0, 2)
        torch.testing.assert_close(z.T.cov(correction=0), torch.eye(len(z.T)), atol=2e-3, rtol=0)
        normalized = linear.norm(before)[0].movedim(1, -1).flatten(0, 2)
        along = (normalized.T @ z).norm(dim=0) / len(z) ** 0.5
        torch.testing.assert_close(along, torch.linalg.svdvals(normalized), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("whiten", "images"), [(True, 6), (False, 60)])
def test_too_few_pixels_or_no_whitening_keep_the_random_rotation(whiten, images):
    torch.manual_seed(0)
    glow = Glow((3, 4, 4), 1, 1, 8, whiten=whiten)
    weight = glow.levels[0].bijections[1].bijections[0].weight
    before = weight.clone()
    initialize(glow, torch.randn(images, 3, 4, 4))
    assert torch.equal(weight, before)
    torch.testing.assert_close(before @ before.T, torch.eye(12), rtol=0, atol=1e-5)


def test_initialization_normalizes_vectors_and_happens_once():
    flow, x = Affine(5), 4 + 3 * torch.randn(64, 5)
    initialize(flow, x)
    z = flow.norm(x)[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(5))
    before = [p.clone() for p in flow.parameters()]
    flow(10 * x)
    assert all(map(torch.equal, before, flow.parameters()))


@pytest.mark.parametrize("x", [torch.ones(8, 3), torch.randn(1, 3)])
def test_initialization_from_constant_channels_or_one_sample_is_finite(x):
    flow = Affine(3)
    initialize(flow, x)
    assert all(each.isfinite().all() for each in flow(x))


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_realnvp_starts_as_the_identity(dim):
    x = torch.randn(5, dim)
    z, log_det = RealNVP(dim)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(5))


def test_realnvp_masks_alternate():
    x = torch.randn(4, 5)
    assert ((perturb(RealNVP(5, couplings=2))(x)[0] - x).abs() > 1e-6).all()
    changed = (perturb(RealNVP(5, couplings=1))(x)[0] - x).abs() > 1e-6
    assert changed[:, ::2].all()
    assert not changed[:, 1::2].any()


def test_coupling_bounds_the_log_scale():
    net = nn.Conv2d(1, 2, 1)
    nn.init.constant_(net.weight, 0)
    nn.init.constant_(net.bias, 1e4)
    _, log_det = AffineCoupling(net)(torch.zeros(1, 2, 1, 1))
    assert log_det.item() == pytest.approx(2)
