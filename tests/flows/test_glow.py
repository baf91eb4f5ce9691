from collections import Counter

import pytest
import torch
import yaml
from torch import nn

from conftest import REPOSITORY
from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.flows import (
    AffineCoupling,
    Glow,
    RealNVP,
    Trumpet,
    fast,
    initialize,
)
from submanifold.flows.fast import kernels
from submanifold.flows.glow import affine_coupling
from submanifold.models import Hierarchy, Stage


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


def test_coupling_bounds_the_log_scale():
    net = nn.Conv2d(1, 2, 1)
    nn.init.constant_(net.weight, 0)
    nn.init.constant_(net.bias, 1e4)
    _, log_det = AffineCoupling(net)(torch.zeros(1, 2, 1, 1))
    assert log_det.item() == pytest.approx(2)


def operations(tensor):
    """How often each operation of autograd's graph computed a tensor, by name."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [function for function, _ in node.next_functions]
    return Counter(type(node).__name__ for node in seen)


needs_kernels = pytest.mark.skipif(
    not kernels.has_steps(torch.float32), reason="no kernels for this processor"
)


@needs_kernels
def test_the_default_glow_fuses_all_steps_of_a_level_in_both_directions():
    parameters = yaml.safe_load((REPOSITORY / "conf/base/parameters_defaults.yml").read_text())
    settings = parameters["stage_defaults"]["glow"]["flow"]
    settings.pop("type")
    flow, x = Glow((3, 32, 32), **settings), torch.rand(2, 3, 32, 32) - 0.5
    flow(x)  # which initializes it
    z, _ = flow(x)
    for output in (z, flow.inverse(z.detach())):
        found = operations(output)
        assert found["StepsBackward"] == len(settings["steps"])
        assert found["ConvolutionBackward0"] < len(settings["steps"])  # of the splits


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
@needs_kernels
def test_no_image_flow_computes_its_steps_one_by_one(build, precision):
    if not kernels.has_steps(precision):
        pytest.skip("no kernels for this processor")
    flow, u = build(), torch.randn(2, 4)
    x = torch.rand(2, *flow.event_shape) - 0.5
    model = Hierarchy([Stage(flow, 4)])
    initialize(flow, x)
    with torch.autocast("cpu", precision, precision != x.dtype):
        for output in (model(x)[0], model.decode(u)):
            found = operations(output)
            assert found["ConvolutionBackward0"] < found["StepsBackward"]  # those of the splits


@pytest.mark.parametrize(
    "change", [lambda x, z: x.mul_(2), lambda x, z: z.mul_(2)], ids=["input", "output"]
)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
@needs_kernels
def test_changes_in_place_after_a_fused_pass_are_errors(change, direction):
    """As of torch's own modules, whose gradients need the input or the output."""
    nets = [perturb(affine_coupling(12, 8)).net for _ in range(2)]
    x = torch.randn(2, 12, 2, 2).contiguous(memory_format=torch.channels_last)
    outputs = fast.flow_steps(x, nets, inverse=direction == "inverse")

    def change_and_differentiate():
        with torch.no_grad():
            change(x, outputs[0])
        outputs[0].sum().backward()

    with pytest.raises(RuntimeError, match="inplace"):
        change_and_differentiate()


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
@pytest.mark.parametrize(
    "module",
    [
        "bijections.1",
        "bijections.1.bijections.0",
        "bijections.1.bijections.1",
        "bijections.1.bijections.1.net.2",
    ],
)
def test_hooks_run_on_the_fused_path(register, module):
    flow, calls = Glow((3, 4, 4), levels=1, steps=2, width=8), []
    layer = flow.levels[0].get_submodule(module)
    getattr(layer, register)(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    z, log_det = flow(x)
    (z.square().sum() + log_det.sum()).backward()
    assert calls == [1]
