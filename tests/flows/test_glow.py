import pytest
import torch
from torch import nn

from strategies import assert_close, perturb
from submanifold.common.errors import UserError
from submanifold.flows import (
    ActNorm,
    Affine,
    AffineCoupling,
    Glow,
    Linear,
    RealNVP,
    fast,
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


def test_split_latents_of_zero_decode_to_the_conditional_mean():
    torch.manual_seed(0)
    split = perturb(Glow((3, 8, 8), 2, 1, 4)).splits[0]
    x = torch.randn(2, 12, 4, 4)
    kept, latent, _ = split(x)
    mean, log_std = split._prior(kept)
    torch.testing.assert_close(split.inverse(kept, torch.zeros_like(latent))[:, 6:], mean)
    torch.testing.assert_close(latent, (x[:, 6:] - mean) / log_std.exp())


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


def test_autocast_applies_to_the_nets_only(monkeypatch):
    monkeypatch.setattr(fast, "supports", lambda *_: False)
    torch.manual_seed(0)
    glow, x = Glow((3, 16, 16), 3, 2, 8), torch.rand(4, 3, 16, 16) - 0.5
    initialize(glow, x)
    perturb(glow, 0.05)
    dtypes = {nn.Conv2d: set(), Linear: set(), AffineCoupling: set()}
    for module in glow.modules():
        if type(module) in dtypes:
            module.register_forward_hook(
                lambda module, _x, out: dtypes[type(module)].add(
                    (out if isinstance(out, torch.Tensor) else out[0]).dtype
                )
            )
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = glow(x)
        back = glow.inverse(z)
    assert dtypes == {
        nn.Conv2d: {torch.bfloat16},
        Linear: {torch.float32},
        AffineCoupling: {torch.float32},
    }
    exact, exact_log_det = glow(x)
    assert not torch.equal(z, exact)
    torch.testing.assert_close(z, exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(log_det, exact_log_det, atol=1.0, rtol=1e-2)
    torch.testing.assert_close(back, x, atol=1e-2, rtol=0)


def test_actnorm_without_initialization_is_the_identity():
    x = torch.randn(4, 3, 2, 2)
    z, log_det = ActNorm(3)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(4))


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_realnvp_starts_as_the_identity(dim):
    x = torch.randn(5, dim)
    z, log_det = RealNVP(dim)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(5))


def test_realnvp_of_dimension_one_is_affine():
    flow = perturb(RealNVP(1), 0.5)
    z, log_det = flow(torch.tensor([[0.0], [1.0], [2.0]]))
    torch.testing.assert_close(z[2] - z[1], z[1] - z[0])
    torch.testing.assert_close((z[1] - z[0]).log().expand(3), log_det)


def test_realnvp_masks_alternate():
    x = torch.randn(4, 5)
    assert ((perturb(RealNVP(5, couplings=2))(x)[0] - x).abs() > 1e-6).all()
    changed = (perturb(RealNVP(5, couplings=1))(x)[0] - x).abs() > 1e-6
    assert changed[:, ::2].all()
    assert not changed[:, 1::2].any()


def test_masked_coupling_equals_the_full_products_and_their_gradients():
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


def test_coupling_bounds_the_log_scale():
    net = nn.Conv2d(1, 2, 1)
    nn.init.constant_(net.weight, 0)
    nn.init.constant_(net.bias, 1e4)
    _, log_det = AffineCoupling(net)(torch.zeros(1, 2, 1, 1))
    assert log_det.item() == pytest.approx(2)
