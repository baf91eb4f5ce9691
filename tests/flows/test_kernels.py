"""The compiled kernels against torch modules: random sizes, layouts, precisions and gradients.

``SUBMANIFOLD_FUZZ_EXAMPLES=10000 pytest -n 0 tests/flows/test_kernels.py`` tries more.
"""

import copy
import math
import os
import random
import resource
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

from strategies import perturb
from submanifold.flows import fast
from submanifold.flows.fast import kernels
from submanifold.flows.glow import affine_coupling as coupling

pytestmark = pytest.mark.skipif(
    not kernels.has_steps(torch.float32), reason="no compiler, or unsupported processor"
)
SEEDS = range(int(os.environ.get("SUBMANIFOLD_FUZZ_EXAMPLES", "120")))
AVX2 = ["-O1", "-mavx2", "-mfma", "-fopenmp", "-std=c++17", "-fPIC"]
LARGEST = 3e6  # multiplications in a hidden layer, so that a case takes milliseconds
KINK = 2e-6  # inputs of ReLUs closer to zero have a gradient that depends on rounding


@pytest.fixture(params=["this processor", "AVX2"])
def build(request, monkeypatch):
    """The kernels compiled for this processor, or for one with AVX2 only."""
    if request.param == "AVX2":
        if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            pytest.skip("unsupported processor")
        monkeypatch.setattr(kernels, "COMPILE", AVX2)
        monkeypatch.setattr(kernels, "library", cache(kernels.library.__wrapped__))


def sizes(draw):
    """(batch, channels, height, width) of images, and the width of a net."""
    batch = draw.choice([0, 1, 2, 3, 5, 16, 33])
    channels = 2 * draw.choice([1, 2, 3, 5, 6, 7, 12, 16, 17, 24])
    height, side = (draw.choice([1, 2, 3, 4, 7, 8, 16, 17, 40]) for _ in range(2))
    width = draw.choice([1, 3, 8, 15, 16, 17, 33, 64, 80])
    each = height * side * width * (width + 14 * channels)
    return (min(batch, int(LARGEST / each) + 1), channels, height, side), width


def laid_out(draw, shape, dtype):
    """Random images in a random memory layout."""
    x = torch.randn(shape, dtype=dtype)
    kind = draw.choice(
        ["plain", "channels last", "sliced", "strided", "expanded", "transposed", "unaligned"]
    )
    if kind == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "sliced":
        return torch.nn.functional.pad(x, (1, 2, 3, 1, 1, 1))[:, 1:-1, 3:-1, 1:-2]
    if kind == "strided":
        return torch.cat([x, x + 1], 1)[:, ::2]
    if kind == "expanded":
        return x[:, :, :1].expand(shape)
    if kind == "transposed":
        return torch.randn(shape[3], shape[2], shape[0], shape[1], dtype=dtype).permute(2, 3, 1, 0)
    if kind == "unaligned" and x.numel():
        bytes_ = torch.zeros(1 + x.numel() * x.element_size(), dtype=torch.uint8).numpy()
        batch, channels, height, side = shape
        last = torch.frombuffer(bytes_, dtype=dtype, offset=1).view(batch, height, side, channels)
        return last.permute(0, 3, 1, 2).copy_(x)
    return x


def plain(net, x, inverse):
    """A coupling by torch modules, with the log-determinant of the computed direction."""
    a, b = x.chunk(2, 1)
    raw, shift = net(a).to(x.dtype).chunk(2, 1)
    log_scale = 2 * torch.tanh(raw / 2)
    moved = (b - shift) * (-log_scale).exp() if inverse else b * log_scale.exp() + shift
    log_det = log_scale.flatten(1).sum(1)
    return torch.cat([a, moved], 1), -log_det if inverse else log_det


def plain_steps(x, nets, inverse, matrices, shifts):
    total = x.new_zeros(len(x))
    for index, net in enumerate(nets):
        if inverse:
            x, log_det = plain(net, x, inverse)
        if matrices is not None:
            with torch.autocast("cpu", enabled=False):
                x = torch.einsum("ij,bjhw->bihw", matrices[index], x) + shifts[index, :, None, None]
        if not inverse:
            x, log_det = plain(net, x, inverse)
        total = total + log_det
    return x, total


class Case:
    """Couplings, images and derivatives, drawn from a seed."""

    def __init__(self, seed):
        draw = self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.shape, width = sizes(draw)
        channels = self.shape[1]
        self.bfloat16 = kernels.has_steps(torch.bfloat16) and draw.random() < 0.3
        self.nets = [perturb(coupling(channels, width), 0.5).net for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.5:
            for net in self.nets:
                net.to(memory_format=torch.channels_last)
        self.matrices = self.shifts = None
        if draw.random() < 0.6:
            mixing = torch.randn(len(self.nets), channels, channels) / channels**0.5
            self.matrices = torch.nn.Parameter(torch.eye(channels) + 0.5 * mixing)
            self.shifts = torch.nn.Parameter(torch.randn(len(self.nets), channels))
        weights = [weight for net in self.nets for weight in net.parameters()]
        self.weights = weights if self.matrices is None else [self.matrices, self.shifts, *weights]
        share = draw.choice([0, 0.5, 1, 1])
        for weight in self.weights:
            weight.requires_grad_(draw.random() < share)
        self.inverse, self.by_x = (draw.random() < 0.5 for _ in range(2))
        self.tangent = torch.randn(self.shape) if draw.random() < 0.3 else None
        self.x = laid_out(draw, self.shape, torch.float32)
        while not self.bfloat16 and self.smallest_input_of_a_relu() < KINK:
            self.x = laid_out(draw, self.shape, torch.float32)
        if self.tangent is not None and 0 in self.x.stride():
            self.x = self.x.clone()  # torch makes no dual of an expanded tensor
        self.outputs = draw.choice([(1, 0), (0, 1), (1, 1)])
        self.threads = draw.randint(1, 3)

    def by_kernels(self, x):
        return fast.flow_steps(x, self.nets, self.inverse, self.matrices, self.shifts)

    def by_modules(self, x):
        return plain_steps(x, self.nets, self.inverse, self.matrices, self.shifts)

    def run(self, compute, x, bfloat16):
        """Outputs, and their tangents or gradients."""
        with torch.autocast("cpu", torch.bfloat16, bfloat16):
            if self.tangent is not None:
                with torch.no_grad(), forward_ad.dual_level():
                    made = compute(forward_ad.make_dual(x, self.tangent))
                    return [part for each in made for part in forward_ad.unpack_dual(each)]
            x = x.detach().requires_grad_(self.by_x)
            made = compute(x)
        wanted = [each for each in (x, *self.weights) if each.requires_grad]
        found = [each.detach() for each in made]
        if not wanted:
            return found
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            share * (torch.randn(each.shape, generator=generator).to(each) * each).sum()
            for share, each in zip(self.outputs, made, strict=True)
        )
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True)
        again = torch.autograd.grad(loss, wanted)
        assert all(map(torch.equal, gradients, again))
        return found + list(gradients)

    def doubled(self):
        """The same in double precision."""
        other = copy.deepcopy(self)
        for weight in other.weights:
            weight.data = weight.data.double()
        if other.tangent is not None:
            other.tangent = other.tangent.double()
        return other

    def smallest_input_of_a_relu(self):
        """By its size, in double precision."""
        double, smallest = self.doubled(), [math.inf]
        for layer in (layer for net in double.nets for layer in net[:-1:2]):
            layer.register_forward_hook(
                lambda *call: smallest.append(call[2].abs().min()) if call[2].numel() else None
            )
        with torch.no_grad():
            double.by_modules(self.x.double())
        return min(smallest)

    def check(self):
        """Compare with torch modules, and allow for their rounding errors."""
        x, before = self.x, torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            found = self.run(self.by_kernels, x, self.bfloat16)
        finally:  # several threads slow the plain modules on a busy machine
            torch.set_num_threads(before)
        rounded = self.run(self.by_modules, x, self.bfloat16)
        double = self.doubled()
        exact = double.run(double.by_modules, x.double(), False)
        assert [each.shape for each in found] == [each.shape for each in exact]
        if self.bfloat16:
            assert distance(found, exact) <= 3 * distance(rounded, exact) + 0.1
            return
        for value, single, true in zip(found, rounded, exact, strict=True):
            if true.numel():
                error, size = (value - true).abs().max(), true.abs().max()
                assert error <= 1e-4 * (1 + size) + 2 * (single - true).abs().max()


def distance(values, exact):
    """Relative distance of all values: a single one can be rounded exactly by chance."""
    return sum(
        ((value - true).norm() / (1e-3 + true.norm())).square()
        for value, true in zip(values, exact, strict=True)
    ).sqrt()


def test_random_couplings_equal_torch_modules(build):
    for seed in SEEDS:
        print("seed", seed, flush=True)  # pytest shows the last one, which failed
        Case(seed).check()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux")
def test_exhausted_memory_raises_memory_error():
    net, x = coupling(2, 64).net, torch.zeros(1, 2, 1024, 1024)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, limits[1]))
    try:
        with pytest.raises(MemoryError, match="1024, 1024"), torch.no_grad():
            fast.flow_steps(x, [net], inverse=False)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(not kernels.has_steps(torch.bfloat16), reason="unsupported processor")
def test_bfloat16_rounding_is_to_nearest_even():
    bits = torch.randint(-(2**31), 2**31, (2000,), generator=torch.Generator().manual_seed(0))
    ties = bits // 2**16 * 2**16 + 2**15
    nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -1])
    x = torch.cat([bits, ties, ties + 1, ties - 1, nans]).int().view(torch.float32)
    x = torch.cat([x, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])])
    expected = x.to(torch.bfloat16)
    x, expected = (values[~(expected.abs() < 1e-37)] for values in (x, expected))  # products are 0
    weights = [weight.detach() for weight in coupling(2, 2).net.parameters()]
    weights[0].zero_()[:, 0, 1, 1] = torch.tensor([1.0, -1.0])
    weights[1].zero_()
    images = torch.stack([x, x], 1).view(-1, 1, 1, 2)
    *_, saved = kernels.step(images, weights, torch.bfloat16, inverse=False, save=True)
    for rounded, exact in zip(saved.hidden[0].T, (expected, -expected), strict=False):
        assert torch.equal(rounded.isnan(), exact.isnan())
        numbers = ~exact.isnan()
        assert torch.equal(rounded[numbers], exact[numbers].relu())
