import copy
import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from strategies import assert_close, perturb
from submanifold.flows import Glow, fast
from submanifold.flows.fast import kernels
from submanifold.flows.glow import affine_coupling
from submanifold.geometry.linearization import jacobian
from submanifold.geometry.volume import jacobian_log_volume
from submanifold.models import Hierarchy, Stage

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no compiler")


def coupling(channels, width):
    return perturb(affine_coupling(channels, width), 0.5)


def run(couple, x, net):
    """Outputs of a coupling, and the gradients of x and of the net."""
    x = x.clone().requires_grad_()
    z, log_det = couple(x)
    by_z = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    by_log_det = torch.randn(log_det.shape, generator=torch.Generator().manual_seed(2))
    loss = (by_z * z).sum() + (by_log_det * log_det).sum()
    return [z, log_det, *torch.autograd.grad(loss, [x, *net.parameters()])]


@needs_kernels
def test_jacobian_log_volume_has_the_gradient_of_torch_modules():
    torch.manual_seed(0)
    model = Hierarchy([Stage(perturb(Glow((2, 4, 4), levels=1, steps=2, width=8)), 5)])
    u = torch.randn(3, 5)

    def gradients(model, u):
        found = jacobian_log_volume(jacobian(model.decode, u)).sum()
        return torch.autograd.grad(found, [*model.parameters()], allow_unused=True)

    by_kernels = gradients(model, u)
    by_modules = gradients(copy.deepcopy(model).double(), u.double())  # without kernels
    for value, exact in zip(by_kernels, by_modules, strict=True):
        assert (value is None) == (exact is None)
        if exact is not None:
            assert_close(value, exact)
    assert any(exact is not None and exact.abs().max() > 1e-3 for exact in by_kernels)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_backward_pass_has_the_same_gradients(dtype):
    """The first one frees the hidden layers, and the second computes them again."""
    if not kernels.has_steps(dtype):
        pytest.skip("unsupported processor")
    nets = [coupling(12, 32).net for _ in range(2)]
    weights = [weight for net in nets for weight in net.parameters()]
    with torch.autocast("cpu", dtype, dtype is torch.bfloat16):
        z, log_det = fast.flow_steps(torch.randn(4, 12, 8, 8), nets, inverse=False)
    loss = z.square().sum() + log_det.sum()
    gradients = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(loss, weights), gradients))


@needs_kernels
def test_only_inputs_and_nets_of_glow_are_supported():
    if not kernels.has_steps(torch.float32):
        pytest.skip("unsupported processor")
    module, x = coupling(4, 8), torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", torch.float16):
        assert not fast.supports(x, [module.net])
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.supports(x, [module.net]) == kernels.has_steps(torch.bfloat16)
    assert fast.supports(x, [module.net, module.net])
    for images in (x.double(), x[:, :, 0, 0], x[:, :3], x.repeat(1, 2, 1, 1)):
        assert not fast.supports(images, [module.net])
    for index, layer in [
        (0, nn.Conv2d(2, 8, 3)),  # without padding
        (0, nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular")),
        (0, nn.Conv2d(2, 8, 3, padding=1, bias=False)),
        (2, nn.Conv2d(8, 8, 3, padding=1)),
        (1, nn.Tanh()),
    ]:
        net = copy.deepcopy(module.net)
        net[index] = layer
        assert not fast.supports(x, [module.net, net])
    for unsupported in (copy.deepcopy(module.net).double(), nn.Conv2d(2, 4, 1)):
        assert not fast.supports(x, [unsupported])


@needs_kernels
def test_glow_has_the_gradients_of_torch_modules():
    torch.manual_seed(0)
    flow, x = perturb(Glow((3, 16, 16), 3, 2, 16), 0.1), torch.rand(8, 3, 16, 16) - 0.5

    def gradient(flow, x, bfloat16=False):
        with torch.autocast("cpu", torch.bfloat16, bfloat16):
            z, log_det = flow(x)
            back = flow.inverse(torch.cat([z[:, :100], torch.zeros_like(z[:, 100:])], 1))
        loss = (0.5 * z.square().sum(1) - log_det).mean() + 300 * (x - back).square().mean()
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in flow.parameters()])

    loss, exact = gradient(copy.deepcopy(flow).double(), x.double())  # without kernels
    single_loss, single = gradient(copy.deepcopy(flow), x)
    fast_loss, found = gradient(flow, x, bfloat16=True)
    assert single_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert (single - exact).norm() <= 1e-4 * exact.norm()
    assert fast_loss.item() == pytest.approx(loss.item(), rel=2e-3)
    assert torch.cosine_similarity(found.double(), exact, dim=0) > 0.999


@needs_kernels
def test_second_derivatives_raise():
    module, x = coupling(4, 8), torch.randn(2, 4, 3, 3, requires_grad=True)
    z, _ = fast.flow_steps(x, [module.net], inverse=False)
    (gradient,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def compile_with(compiler, folder):
    """Load the kernels in a new process, which prints whether they exist."""
    script = (
        "from submanifold.flows.fast import kernels\n"
        "print(*[kernels.library() is not None for _ in range(2)])"
    )
    environment = {**os.environ, "CXX": compiler, "TORCH_EXTENSIONS_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other instructions")
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no compiler")
def test_the_kernels_exist_where_a_compiler_does():
    """Otherwise the tests of the kernels would skip, and none would fail."""
    assert kernels.library() is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_missing_compiler_is_one_warning_and_disables_the_kernels(tmp_path, compiler):
    ran = compile_with(compiler, tmp_path)
    assert ran.stdout.strip() == "False False"
    assert ran.stderr.count("could not be compiled") == 1
    assert "apt-get install g++" in ran.stderr
    assert not list(tmp_path.rglob("*.so"))


@needs_kernels
@pytest.mark.slow
def test_kernels_are_compiled_once(tmp_path):
    assert compile_with("c++", tmp_path).stdout.strip() == "True True"
    assert len(list(tmp_path.rglob("*.so"))) == 1
    assert compile_with("no-such-compiler", tmp_path).stdout.strip() == "True True"


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [4, 32])
def test_gradients_do_not_depend_on_the_number_of_threads(dtype, size):
    """Bit for bit, so that a resumed training may use another number."""
    torch.manual_seed(0)
    net, x = coupling(12, 16).net, torch.randn(12, 12, size, size)

    def found(threads):
        torch.set_num_threads(threads)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            return run(lambda x: fast.flow_steps(x, [net], inverse=False), x, net)

    if not kernels.has_steps(dtype):
        pytest.skip("unsupported processor")
    try:
        for one, several in zip(found(1), found(3), strict=True):
            assert torch.equal(one, several)
    finally:
        torch.set_num_threads(1)
