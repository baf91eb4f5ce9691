import pytest
import torch
from torch import nn

from strategies import perturb
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


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_papers_sizes_give_the_papers_numbers_of_parameters():
    with torch.device("meta"):
        glow, realnvp = Glow((3, 32, 32), levels=3, steps=32, width=512), RealNVP(500)
    assert 43.9e6 <= parameters(glow) <= 44.0e6
    assert round(parameters(realnvp) / 1e6, 1) == 15.0
    assert round((parameters(glow) + parameters(realnvp)) / 1e6, 1) in (58.9, 59.0)


@pytest.mark.parametrize("shape", [(3, 20, 16), (3, 16, 20), (1, 3, 3)])
def test_an_image_that_cannot_be_halved_that_often_is_refused(shape):
    with pytest.raises(UserError, match=r"^levels=3: .*divisible by 8"):
        Glow(shape, levels=3, steps=1, width=2)


def test_each_level_has_its_steps():
    glow = Glow((3, 16, 16), 3, [3, 1, 2], 4)
    assert [len(level.bijections) - 1 for level in glow.levels] == [3, 1, 2]
    with pytest.raises(UserError, match=r"^steps: expected one number or 3, one per level"):
        Glow((3, 16, 16), 3, [3, 1], 4)


def test_latents_come_coarsest_first():
    torch.manual_seed(0)
    glow = Glow((1, 8, 8), levels=3, steps=1, width=2)
    image = torch.randn(1, 8, 8)
    support = torch.autograd.functional.jacobian(lambda x: glow(x[None])[0][0], image) != 0
    # a fresh flow has no 3x3 convolution at work: a latent of level l sees 2^l x 2^l pixels
    rows, columns = support[:, 0].any(2).sum(1), support[:, 0].any(1).sum(1)
    expected = torch.tensor([8] * 16 + [4] * 16 + [2] * 32)
    assert torch.equal(rows, expected)
    assert torch.equal(columns, expected)


def test_the_last_level_makes_the_first_latents_alone():
    torch.manual_seed(0)
    glow, x = perturb(Glow((3, 16, 16), 3, 1, 4)), torch.randn(2, 3, 16, 16)
    before = glow(x)[0]
    perturb(glow.levels[-1])
    changed = (glow(x)[0] != before).any(0)
    assert changed[:192].all()
    assert not changed[192:].any()
    perturb(glow.levels[1])
    changed = (glow(x)[0] != before).any(0)
    assert changed[:384].all()
    assert not changed[384:].any()


def test_a_split_latent_of_zero_decodes_its_conditional_mean():
    torch.manual_seed(0)
    split = perturb(Glow((3, 8, 8), 2, 1, 4)).splits[0]
    x = torch.randn(2, 12, 4, 4)
    kept, latent, _ = split(x)
    mean, log_std = split._prior(kept)
    torch.testing.assert_close(split.inverse(kept, torch.zeros_like(latent))[:, 6:], mean)
    torch.testing.assert_close(latent, (x[:, 6:] - mean) / log_std.exp())


def test_initialization_normalises_what_every_matrix_gets():
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


def test_initialization_whitens_what_a_squeeze_makes_its_principal_components_first():
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
        explained = torch.linalg.svdvals(normalized)
        along = (normalized.T @ z).norm(dim=0) / len(z) ** 0.5
        torch.testing.assert_close(along, explained, rtol=1e-3, atol=0)


def test_too_few_pixels_to_whiten_leave_the_rotation_and_so_does_the_papers_way():
    torch.manual_seed(0)
    for glow in (Glow((3, 4, 4), 1, 1, 8), Glow((3, 4, 4), 1, 1, 8, whiten=False)):
        before = glow.levels[0].bijections[1].bijections[0].weight.clone()
        initialize(glow, torch.randn(6 if glow.config["whiten"] else 60, 3, 4, 4))
        assert torch.equal(glow.levels[0].bijections[1].bijections[0].weight, before)


def test_initialization_normalises_vectors_and_happens_once():
    flow, x = Affine(5), 4 + 3 * torch.randn(64, 5)
    initialize(flow, x)
    z = flow.norm(x)[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(5))
    before = [p.clone() for p in flow.parameters()]
    flow(10 * x)
    assert all(map(torch.equal, before, flow.parameters()))


def test_initialization_survives_a_constant_channel_and_a_single_row():
    for x in (torch.ones(8, 3), torch.randn(1, 3)):
        flow = Affine(3)
        initialize(flow, x)
        z, log_det = flow(x)
        assert torch.isfinite(z).all()
        assert torch.isfinite(log_det).all()


def test_an_actnorm_that_nobody_initialised_is_the_identity():
    x = torch.randn(4, 3, 2, 2)
    z, log_det = ActNorm(3)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(4))


def test_under_autocast_the_nets_alone_run_in_bfloat16(monkeypatch):
    monkeypatch.setattr(fast, "supports", lambda *_: False)
    torch.manual_seed(0)
    glow, x = Glow((3, 16, 16), 3, 2, 8), torch.rand(4, 3, 16, 16) - 0.5
    initialize(glow, x)
    # with every net at zero, their precision cannot matter: all else has to be float32 throughout,
    # up to how a sum is taken, which depends on where its terms lie in memory
    exact, exact_log_det = glow(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = glow(x)
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(z, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det, exact_log_det, rtol=1e-6, atol=0)

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
    assert z.dtype == log_det.dtype == back.dtype == torch.float32
    exact, exact_log_det = glow(x)
    assert not torch.equal(z, exact)
    torch.testing.assert_close(z, exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(log_det, exact_log_det, atol=1.0, rtol=1e-2)
    torch.testing.assert_close(back, x, atol=1e-2, rtol=0)
    torch.testing.assert_close(glow.inverse(exact), x, atol=1e-5, rtol=0)


def test_linear_and_actnorm_give_the_same_bits_under_autocast():
    torch.manual_seed(0)
    for layer, x in (
        (Linear(6), torch.randn(4, 6)),
        (Linear(6), torch.randn(4, 6, 3, 3)),
        (perturb(ActNorm(6)), torch.randn(4, 6, 3, 3)),
    ):
        exact, log_det = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            z, ld = layer(x)
            back = layer.inverse(z)
        assert torch.equal(z, exact)
        assert torch.equal(ld, log_det)
        assert torch.equal(back, layer.inverse(exact))
