import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from strategies import assert_close, perturb
from submanifold.flows import Glow, fast, set_activation_checkpointing
from submanifold.flows.fast import kernels
from submanifold.flows.glow import flow_step as step
from submanifold.geometry.linearization import jacobian
from submanifold.geometry.volume import jacobian_log_volume
from submanifold.models import Hierarchy, Stage

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no compiler here")
some = settings(max_examples=40, deadline=None, derandomize=True)


def coupling(channels, width):
    return perturb(step(channels, width, False).bijections[-1], 0.5)


@st.composite
def cases(draw):
    """A coupling and images for it, of sizes that the kernels know (halves of 6, 12, 24) or not."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels = 2 * draw(st.sampled_from([1, 2, 3, 6, 12, 24]))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    return (
        coupling(channels, draw(st.sampled_from([1, 8, 19]))),
        torch.randn(draw(st.integers(1, 5)), channels, height, width),
    )


def run(couple, x, net):
    """What a coupling returns, and the gradients of a function of all of it, by x and the net."""
    x = x.clone().requires_grad_()
    z, log_det = couple(x)
    by_z = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    by_log_det = torch.randn(log_det.shape, generator=torch.Generator().manual_seed(2))
    loss = (by_z * z).sum() + (by_log_det * log_det).sum()
    return [z, log_det, *torch.autograd.grad(loss, [x, *net.parameters()])]


def plain(module, x, inverse):
    """The coupling by plain modules, with the log-determinant of its own direction."""
    log_scale, shift = module.scale_and_shift(x.chunk(2, 1)[0])
    a, b = x.chunk(2, 1)
    moved = (b - shift) * (-log_scale).exp() if inverse else b * log_scale.exp() + shift
    log_det = log_scale.flatten(1).sum(1)
    return torch.cat([a, moved], 1), -log_det if inverse else log_det


@pytest.fixture(params=["its own products", "torch's products"])
def couple(request, monkeypatch):
    """A coupling by either way, of which a processor takes the faster one."""
    if request.param == "torch's products":
        monkeypatch.setattr(kernels, "has_steps", lambda dtype: False)
    elif not kernels.has_steps(torch.bfloat16):
        pytest.skip("not this processor")
    return fast.affine_coupling


# the fixture holds for all examples
both = settings(some, suppress_health_check=[HealthCheck.function_scoped_fixture])


@needs_kernels
@both
@given(cases(), st.booleans(), st.booleans(), st.booleans())
def test_in_single_precision_it_is_the_plain_coupling(
    couple, case, inverse, checkpointing, channels_last
):
    module, x = case
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = run(lambda x: couple(x, module.net, inverse, checkpointing), x, module.net)
    expected = run(lambda x: plain(module, x, inverse), x, module.net)
    for value, exact in zip(found, expected, strict=True):
        assert_close(value, exact)


@pytest.mark.skipif(not kernels.has_steps(torch.float32), reason="not this processor")
@some
@given(cases(), st.booleans(), st.booleans())
def test_steps_are_couplings_with_their_channels_mixed_before_or_undone_with_them_mixed_after(
    case, inverse, checkpointing
):
    (module, x), channels = case, case[1].shape[1]
    couplings = [module, perturb(copy.deepcopy(module))]
    weights = nn.ParameterList(
        [
            torch.eye(channels) + torch.randn(2, channels, channels) / channels**0.5,
            torch.randn(2, channels),
            *(weight for each in couplings for weight in each.parameters()),
        ]
    )

    def steps(x):
        return fast.flow_steps(
            x, [each.net for each in couplings], inverse, checkpointing, *weights[:2]
        )

    def plain_steps(x):
        total = 0
        for each, matrix, shift in zip(couplings, *weights[:2], strict=True):
            if inverse:
                x, log_det = plain(each, x, inverse)
            x = torch.einsum("ij,bjhw->bihw", matrix, x) + shift[:, None, None]
            if not inverse:
                x, log_det = plain(each, x, inverse)
            total = total + log_det
        return x, total

    for value, exact in zip(run(steps, x, weights), run(plain_steps, x, weights), strict=True):
        assert_close(value, exact)


@needs_kernels
def test_columns_of_the_jacobian_have_the_gradient_of_plain_modules(monkeypatch):
    torch.manual_seed(0)
    model = Hierarchy([Stage(perturb(Glow((2, 4, 4), levels=1, steps=2, width=8)), 5)])
    u = torch.randn(3, 5)

    def gradients():
        found = jacobian_log_volume(jacobian(model.decode, u)).sum()
        return torch.autograd.grad(found, [*model.parameters()], allow_unused=True)

    by_kernels = gradients()
    monkeypatch.setattr(kernels, "library", lambda: None)
    for value, exact in zip(by_kernels, gradients(), strict=True):
        assert (value is None) == (exact is None)
        if exact is not None:
            assert_close(value, exact)
    assert any(exact is not None and exact.abs().max() > 1e-3 for exact in by_kernels)


@needs_kernels
@both
@given(cases(), st.booleans(), st.booleans())
def test_in_bfloat16_it_is_as_near_to_single_precision_as_plain_modules_are(
    couple, case, inverse, checkpointing
):
    module, x = case
    exact = run(lambda x: plain(module, x, inverse), x, module.net)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(lambda x: plain(module, x, inverse), x, module.net)
        found = run(lambda x: couple(x, module.net, inverse, checkpointing), x, module.net)

    def distance(values):
        # together, since one number alone may be rounded luckily
        return math.sqrt(
            sum(
                ((value - true).norm() / (1e-3 + true.norm())).item() ** 2
                for value, true in zip(values, exact, strict=True)
            )
        )

    assert all(value.dtype == torch.float32 for value in found)
    assert distance(found) <= 2 * distance(rounded) + 0.02


@needs_kernels
@some
@given(cases())
def test_the_inverse_undoes_the_coupling(case):
    module, x = case
    z, log_det = fast.affine_coupling(x, module.net, inverse=False, checkpointing=False)
    back, back_log_det = fast.affine_coupling(z, module.net, inverse=True, checkpointing=False)
    assert_close(back, x)
    assert_close(back_log_det, -log_det)


@needs_kernels
def test_recomputing_keeps_no_hidden_layer_and_gives_the_same_gradient(couple):
    module, x = coupling(12, 32), torch.randn(4, 12, 8, 8)

    def has_hidden_layers(z):
        node = z.grad_fn
        return (node.steps[0].hidden if hasattr(node, "steps") else node.layers) is not None

    with torch.autocast("cpu", torch.bfloat16):
        kept = run(lambda x: couple(x, module.net, False, False), x, module.net)
        again = run(lambda x: couple(x, module.net, False, True), x, module.net)
        assert not has_hidden_layers(kept[0])  # freed by the backward pass
        assert all(map(torch.equal, kept, again))
        assert not has_hidden_layers(couple(x, module.net, False, checkpointing=True)[0])
        assert has_hidden_layers(couple(x, module.net, False, checkpointing=False)[0])


@needs_kernels
def test_a_coupling_takes_the_fast_way_for_images_that_the_kernels_know(monkeypatch):
    module, x = coupling(4, 8), torch.randn(2, 4, 3, 3)
    assert fast.supports(x, module.net) == kernels.has_steps(torch.float32)
    with torch.autocast("cpu", torch.float16):
        assert not fast.supports(x, module.net)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.supports(x, module.net)
        assert not fast.supports(x.double(), module.net)
        assert not fast.supports(x[:, :, 0, 0], module.net)
        for index, layer in [
            (0, nn.Conv2d(2, 8, 3)),  # without padding
            (0, nn.Conv2d(2, 8, 3, padding=1, bias=False)),
            (2, nn.Conv2d(8, 8, 3, padding=1)),
            (1, nn.Tanh()),
        ]:
            other = copy.deepcopy(module.net)
            other[index] = layer
            assert not fast.supports(x, other)
        for images in (x[:, :3], x.repeat(1, 2, 1, 1), x[:, :2]):  # of other channels
            assert not fast.supports(images, module.net)
        assert not fast.supports(x, copy.deepcopy(module.net).double())
        other = copy.deepcopy(module.net)
        other[2], other[4] = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 3, padding=1)
        assert not fast.supports(x, other)
        seen = []
        monkeypatch.setattr(kernels, "library", lambda: seen.append(1))
        assert not fast.supports(x, module.net)
        assert seen
        module(x)


@needs_kernels
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_glow_trains_the_same_way_with_and_without(monkeypatch, checkpointing):
    torch.manual_seed(0)
    flow, x = perturb(Glow((3, 16, 16), 3, 2, 16), 0.1), torch.rand(8, 3, 16, 16) - 0.5
    set_activation_checkpointing(flow, checkpointing)

    def gradient(bfloat16):
        flow.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, bfloat16):
            z, log_det = flow(x)
            back = flow.inverse(torch.cat([z[:, :100], torch.zeros_like(z[:, 100:])], 1))
        loss = (0.5 * z.square().sum(1) - log_det).mean() + 300 * (x - back).square().mean()
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in flow.parameters()])

    single_loss, single = gradient(bfloat16=False)
    fast_loss, found = gradient(bfloat16=True)
    monkeypatch.setattr(fast, "supports", lambda *_: False)
    monkeypatch.setattr(fast, "supports_steps", lambda *_: False)
    loss, exact = gradient(bfloat16=False)
    _, rounded = gradient(bfloat16=True)
    assert single_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert (single - exact).norm() <= 1e-4 * exact.norm()
    assert fast_loss.item() == pytest.approx(loss.item(), rel=2e-3)
    assert (found - exact).norm() <= 1.5 * (rounded - exact).norm()
    assert torch.cosine_similarity(found, exact, dim=0) > 0.999


@needs_kernels
def test_derivatives_taken_forward_go_by_plain_modules():
    module, x = coupling(4, 8), torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        _, tangent = torch.func.jvp(lambda x: module(x)[0], (x,), (torch.ones_like(x),))
    assert tangent.isfinite().all()


@needs_kernels
def test_a_second_derivative_is_refused_rather_than_wrong():
    module, x = coupling(4, 8), torch.randn(2, 4, 3, 3, requires_grad=True)
    z, _ = fast.affine_coupling(x, module.net, inverse=False, checkpointing=False)
    (gradient,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def compile_with(compiler, folder):
    """In a process of its own, as one loads them once: whether they are there, and the log."""
    script = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from submanifold.flows.fast import kernels\n"
        "print(kernels.library() is not None)"
    )
    environment = {**os.environ, "CXX": compiler, "TORCH_EXTENSIONS_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )


def test_without_a_compiler_there_are_no_kernels_and_a_line_says_so(tmp_path):
    for compiler in ("no-such-compiler", "false"):
        ran = compile_with(compiler, tmp_path)
        assert ran.stdout.strip() == "False"
        assert "Couplings run as torch modules" in ran.stderr
    assert not list(tmp_path.rglob("*.so"))


@needs_kernels
@pytest.mark.slow
def test_kernels_are_compiled_once(tmp_path):
    assert compile_with("c++", tmp_path).stdout.strip() == "True"
    assert len(list(tmp_path.rglob("*.so"))) == 1
    assert compile_with("no-such-compiler", tmp_path).stdout.strip() == "True"
