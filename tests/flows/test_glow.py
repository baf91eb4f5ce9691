import pytest
import torch
import yaml
from torch import nn
from torch.autograd.forward_ad import make_dual

from conftest import REPOSITORY
from objectives import penalised
from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.flows import (
    Affine,
    AffineCoupling,
    Glow,
    Linear,
    RealNVP,
    Trumpet,
    fast,
    initialize,
    set_activation_checkpointing,
)
from submanifold.flows.fast import kernels
from submanifold.geometry.linearization import Linearization, dual_level, jacobian
from submanifold.models import Hierarchy, Stage
from submanifold.training import Trainer
from submanifold.training.settings import TrainingSettings


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


@pytest.fixture
def fused(monkeypatch):
    """The numbers of flow steps in the calls of the fused function, in their order."""
    if not kernels.has_steps(torch.float32):
        pytest.skip("no kernels for this processor")
    calls, flow_steps = [], fast.flow_steps

    def recorded(x, nets, *arguments):
        calls.append(len(nets))
        return flow_steps(x, nets, *arguments)

    monkeypatch.setattr(fast, "flow_steps", recorded)
    return calls


def test_the_default_glow_fuses_all_steps_of_a_level_in_both_directions(fused):
    parameters = yaml.safe_load((REPOSITORY / "conf/base/parameters.yml").read_text())
    settings = parameters["stage_defaults"]["glow"]["flow"]
    settings.pop("type")
    flow, x = Glow((3, 32, 32), **settings), torch.rand(2, 3, 32, 32) - 0.5
    z, _ = flow(x)
    flow.inverse(z)
    both = [*settings["steps"], *reversed(settings["steps"])]
    assert fused == both
    fused.clear()
    training = {"steps": 10, "batch_size": 2, "learning_rate": 0.01, "warmup": 0, "ema": 0.9,
                "cooldown_fraction": 0.5, "validate_every": 10, "precision": "float32"}  # fmt: skip
    trainer = Trainer(Hierarchy([Stage(flow, 50)]), penalised("mse"), TrainingSettings(**training))
    trainer.step(x)
    assert fused == both


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "build",
    [
        lambda: Glow((1, 4, 2), levels=1, steps=1, width=1),
        lambda: Glow((3, 8, 16), levels=3, steps=[1, 3, 2], width=17),
        lambda: Glow((2, 12, 4), levels=2, steps=2, width=33, whiten=False),
        lambda: Trumpet((3, 8, 8), 4, steps=2, width=8),
    ],
)
def test_no_image_flow_computes_its_steps_one_by_one(monkeypatch, fused, build, precision):
    if not kernels.has_steps(precision):
        pytest.skip("torch's products are faster on this processor")
    flow, u = build(), torch.randn(2, 4)
    x = torch.rand(2, *flow.event_shape) - 0.5
    model = Hierarchy([Stage(flow, 4)])
    view = model.at_dim(2)
    initialize(flow, x)
    for name in ("forward", "inverse"):
        monkeypatch.setattr(AffineCoupling, name, None)
    with torch.autocast("cpu", precision, precision != x.dtype):
        for checkpointing in (False, True):
            set_activation_checkpointing(flow, checkpointing)
            model(x)[0].sum().backward()
            model.decode(u).sum().backward()
        at = Linearization(view.decode, u[:, :2])
        with torch.no_grad():
            at.jvp(at.vjp(x))
            jacobian(model.decode, u)
            view.project(x)
            with dual_level():
                flow(make_dual(x, x))
    assert fused
