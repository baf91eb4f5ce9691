import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jvp, vjp
from torch.utils.checkpoint import checkpoint

from accelerator import register, syncs
from objectives import penalised
from strategies import assert_close
from submanifold.common.device import choose_device
from submanifold.flows import Glow, initialize
from submanifold.flows.fast import kernels
from submanifold.models import Hierarchy, Stage
from submanifold.training.checkpoint import EMA


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def x(accelerator):
    return draw(4, 5).to(accelerator)


def test_it_is_a_device_of_its_own(accelerator, x):
    register()
    assert choose_device("sim").type == accelerator.type == x.device.type == "sim"
    assert type(x) is torch.Tensor
    assert not x.is_cpu
    assert x.to(accelerator) is x
    assert_close(x.cpu(), draw(4, 5))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, cpu: x + cpu,
        lambda x, cpu: cpu + x,
        lambda x, cpu: x.mul_(cpu),
        lambda x, cpu: cpu.mul_(x),
        lambda x, cpu: cpu + x[0, 0],
        lambda x, cpu: torch.tensor(1.0).add_(x[0, 0]),
        lambda x, cpu: x @ cpu.T,
        lambda x, cpu: F.linear(x, cpu),
        lambda x, cpu: F.linear(cpu, x),
        lambda x, cpu: F.conv1d(x[None], cpu[:, :4, None]),
        lambda x, cpu: F.conv1d(cpu[None], x[:, :4, None]),
        lambda x, cpu: torch.cat([x, cpu]),
        lambda x, cpu: torch.stack([cpu, x]),
        lambda x, cpu: torch.where(cpu > 0, x, x),
        lambda x, cpu: x.masked_fill(cpu > 0, 0),
        lambda x, cpu: cpu[torch.zeros(1, dtype=torch.long, device=x.device)],
        lambda x, cpu: torch.cdist(x, cpu),
        lambda x, cpu: x.gather(1, torch.zeros(4, 1, dtype=torch.long)),
        lambda x, cpu: torch._foreach_lerp_([x], [cpu], 0.5),
        lambda x, cpu: torch.add(x, x, out=cpu),
        lambda x, cpu: F.mse_loss(x, cpu),
        lambda x, cpu: nn.Linear(5, 2)(x),
        lambda x, cpu: nn.Linear(5, 2).to(x.device)(cpu),
    ],
)
def test_tensors_of_two_devices_do_not_mix(x, mix):
    with pytest.raises(RuntimeError, match=r"same device|is on cpu|should be either on cpu"):
        mix(x, draw(4, 5))


def test_scalars_and_indices_of_the_cpu_are_taken(x):
    cpu, number = x.cpu(), torch.tensor(2.0)
    assert_close((x * number).cpu(), cpu * 2)
    assert_close((number - x).cpu(), 2 - cpu)
    assert_close(torch.where(x > 0, x, number).cpu(), torch.where(cpu > 0, cpu, number))
    assert_close(x.masked_fill(x > 0, number).cpu(), cpu.masked_fill(cpu > 0, 2))
    index = torch.tensor([2, 0])
    with syncs() as count:
        chosen = x[index]
    assert_close(chosen.cpu(), cpu[index])
    assert (count.total, len(count.uploads)) == (0, 1)
    x[index] = number
    cpu[index] = number
    assert_close(x.cpu(), cpu)


@pytest.mark.parametrize("read", [torch.Tensor.numpy, np.asarray, np.from_dlpack])
def test_numpy_is_refused(x, read):
    with pytest.raises((TypeError, BufferError, RuntimeError)):
        read(x)
    assert read(x.cpu()).shape == (4, 5)


@pytest.mark.parametrize(
    ("kind", "wait"),
    [
        ("item", lambda x: x.sum().item()),
        ("item", lambda x: float(x[0, 0])),
        ("item", lambda x: int(x[0, 0])),
        ("item", lambda x: bool(x[0, 0] > 0)),
        ("item", lambda x: 1 if x.isfinite().all() else 0),
        ("item", lambda x: torch.equal(x, x)),
        ("item", lambda x: torch.linalg.inv(x[:4, :4])),
        ("download", lambda x: x.tolist()),
        ("download", lambda x: x.cpu()),
        ("download", lambda x: x.to("cpu")),
        ("download", lambda x: torch.empty(4, 5).copy_(x)),
        ("nonzero", lambda x: x.nonzero()),
        ("nonzero", lambda x: x[x > 0]),
        ("nonzero", lambda x: torch.where(x > 0)),
        ("nonzero", lambda x: x.masked_select(x > 0)),
        ("nonzero", lambda x: x.__setitem__(x > -math.inf, x.flatten())),
        ("kernel", lambda x: torch.linalg.svd(x)),
        ("synchronize", lambda x: torch.sim.synchronize()),
        ("synchronize", lambda x: torch.accelerator.synchronize()),
        ("upload", lambda x: torch.zeros(3).to(x.device)),
        ("upload", lambda x: torch.tensor([1.0, 2.0], device=x.device)),
        ("upload", lambda x: x.copy_(torch.zeros(5))),
    ],
)
def test_each_wait_is_counted(x, kind, wait):
    with syncs() as count, syncs() as same:
        wait(x)
    assert count.kinds[kind] == 1
    assert count.total == (kind != "upload")
    assert count.lines == same.lines
    with syncs() as later:
        pass
    assert not later.lines


def test_copies_that_do_not_block_are_counted_apart_and_come_late(accelerator, x):
    with syncs() as count:
        torch.zeros(3).to(accelerator, non_blocking=True)
        late, buffer = x.to("cpu", non_blocking=True), torch.zeros(4, 5)
        buffer.copy_(x, non_blocking=True)
        x.zero_()
    assert (count.total, len(count.uploads), count.non_blocking) == (0, 0, 3)
    assert late.isnan().all()
    assert buffer.isnan().all()
    torch.sim.synchronize()
    assert_close(late, draw(4, 5))
    assert_close(buffer, draw(4, 5))


def test_a_wait_is_found_in_the_program(accelerator):
    hierarchy = Hierarchy([Stage(Glow((3, 8, 8), levels=1, steps=1, width=4), 8)]).to(accelerator)
    with syncs() as count:
        hierarchy.sample(2)
        hierarchy.log_prob(torch.zeros(1, 3, 8, 8, device=accelerator)).item()
    ((kind, where),) = count.lines.keys() - count.waits
    assert kind == "upload"
    assert where.startswith("manifold/model.py:")
    assert count.waits == [("item", "")]


def test_what_stays_on_the_device_waits_for_nothing(accelerator, x):
    square = x[:, :4]
    mask = torch.ones_like(x, dtype=torch.bool)
    with syncs() as count:
        y = torch.cat([x, x.exp()], 1).reshape(2, 2, 10).permute(2, 0, 1).contiguous()
        y += torch.arange(10, device=accelerator).view(10, 1, 1)
        y[0] = 3.0
        x[mask] = 0.5
        x.masked_fill_(mask, 2)
        x[x.argsort(0)[:, 0]]
        torch.linalg.slogdet(square)
        torch.linalg.inv_ex(square)
        torch.linalg.qr(square)
        torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(1)
        x.quantile(0.3, dim=1), x.median(), x.std((0, 1)), x.clamp_(0, 1)
        F.pixel_shuffle(torch.zeros(1, 4, 2, 2, device=accelerator), 2)
        torch.randn(3, device=accelerator, generator=torch.Generator(accelerator))
        torch.randperm(9, device=accelerator)
    assert not count.lines


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.linalg.slogdet(x[:, :4]),
        lambda x: torch.linalg.inv_ex(x[:, :4]),
        lambda x: torch.linalg.qr(x, mode="r"),
        lambda x: torch.linalg.svd(x),
        lambda x: torch.linalg.eigh(x @ x.T),
        lambda x: x.sort(0),
        lambda x: (x.quantile(0.3, dim=1), x.median(), x.argsort(1), x.cumsum(0).flip(0)),
        lambda x: x[:, 1:].chunk(2, 1) + x.T.split([2, 3]),
        lambda x: (torch.cdist(x, x), x.repeat_interleave(2, 0), x.unfold(1, 2, 1)),
        lambda x: (x.mean(0), x.std(0, correction=0), x.logsumexp(1), x.norm(dim=1)),
        lambda x: (torch.diag_embed(x), x.double(), (x > 0).any(0), x.to(torch.uint8) // 2),
        lambda x: (torch.add(x, x, out=x.new_empty(0)), x.new_empty(0).resize_(0).numel()),
        lambda x: jvp(lambda u: u.tanh() @ torch.ones_like(x).T, (x,), (x,)),
        lambda x: vjp(lambda u: (u.exp() @ u.T).sum(), x)[1](torch.ones_like(x[0, 0])),
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.reshape(1, 20, 1, 1)[:, :16], 4), 2),
        lambda x: torch._foreach_norm([x, x[0]]),
    ],
)
def test_numbers_are_those_of_the_cpu(accelerator, compute):
    def flat(values):
        if not isinstance(values, (list, tuple)):
            return [values]
        return [value for each in values for value in flat(each)]

    cpu, device = flat(compute(draw(4, 5))), flat(compute(draw(4, 5).to(accelerator)))
    assert len(cpu) == len(device)
    for expected, found in zip(cpu, device, strict=True):
        if isinstance(expected, torch.Tensor):
            assert found.device == accelerator
            assert found.stride() == expected.stride()
            assert torch.equal(found.cpu(), expected)


def test_gradients_go_through_views_written_in_place(accelerator):
    def gradient(device):
        x = draw(3, 4).to(device).requires_grad_()
        y = x * 2
        y[:, 1:] *= x[:, :3]
        y.T[0] = 1
        y.view(2, 6)[1].mul_(x.flatten()[:6])
        checkpoint(lambda z: z.exp().tanh(), y, use_reentrant=False).square().sum().backward()
        return x.grad.cpu()

    assert torch.equal(gradient(accelerator), gradient("cpu"))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_an_autograd_function_of_its_own(x):
    leaf = x.clone().requires_grad_()
    Cube.apply(leaf * 2).sum().backward()
    assert_close(leaf.grad.cpu(), 24 * x.cpu() ** 2)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 2)).to(
        memory_format=torch.channels_last
    )


def train(device, **adam):
    net = network().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, **adam)
    average = [p.detach().clone() for p in net.parameters()]
    images = draw(4, 3, 8, 8).to(device).contiguous(memory_format=torch.channels_last)
    with syncs() as count:
        for _ in range(3):
            net(images).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
            torch._foreach_lerp_(average, list(net.parameters()), 0.5)
    assert not count.lines
    return net, average


@pytest.mark.parametrize("adam", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_a_net_trained_three_steps_has_the_cpus_weights(accelerator, adam):
    expected, expected_average = train("cpu", **adam)
    found, average = train(accelerator, **adam)
    assert found[0].weight.stride() == expected[0].weight.stride()
    start = network().state_dict()
    for name, weight in expected.state_dict().items():
        assert not torch.equal(weight, start[name])
        torch.testing.assert_close(found.state_dict()[name].cpu(), weight, rtol=0, atol=1e-6)
    for a, b in zip(average, expected_average, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-6)


def test_a_flow_has_the_cpus_likelihood_and_gradients(accelerator, monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: None)  # those of the CPU round otherwise

    def gradients(device):
        torch.manual_seed(0)
        hierarchy = Hierarchy([Stage(Glow((3, 8, 8), levels=2, steps=1, width=8), 24)]).to(device)
        images = draw(4, 3, 8, 8).to(device)
        initialize(hierarchy, images)
        terms = penalised("mse")(hierarchy, images)
        terms["loss"].backward()
        return [terms["bits_per_dim"].cpu(), *(p.grad.cpu() for p in hierarchy.parameters())]

    for found, expected in zip(gradients(accelerator), gradients("cpu"), strict=True):
        assert torch.equal(found, expected)


def test_a_flow_trains_in_bfloat16_without_a_wait(accelerator):
    hierarchy = Hierarchy([Stage(Glow((3, 8, 8), levels=2, steps=1, width=8), 24)]).to(accelerator)
    images = draw(4, 3, 8, 8).to(accelerator)
    generator = torch.Generator(accelerator)
    initialize(hierarchy, images)
    optimizer = torch.optim.Adam(hierarchy.parameters(), fused=True)
    ema = EMA(hierarchy, 0.9)
    with syncs() as count:
        with torch.autocast("sim", torch.bfloat16):
            terms = penalised("huber", input_noise=0.1)(hierarchy, images, generator)
        terms["loss"].backward()
        optimizer.step()
        ema.update(0)
    assert not count.lines
    assert all(p.isfinite().all() for p in hierarchy.parameters())


def test_autocast_has_cudas_precisions(accelerator, x):
    weight, double = torch.ones(2, 5, device=accelerator), x.double()
    with torch.autocast("sim", torch.bfloat16):
        y = F.linear(x, weight)
        assert y.dtype == (x @ weight.T).dtype == torch.bfloat16
        assert y.exp().dtype == y.sum().dtype == torch.cat([y, x], 1).dtype == torch.float32
        assert torch.cat([y, y]).dtype == y.relu().dtype == torch.bfloat16
        assert (double @ double.T).dtype == torch.float64
        assert F.linear(x.cpu(), weight.cpu()).dtype == torch.float32
        with torch.autocast("sim", enabled=False):
            assert F.linear(x, weight).dtype == torch.float32
    assert F.linear(x, weight).dtype == torch.float32
    assert_close(y.float().cpu(), F.linear(x.cpu().bfloat16(), weight.cpu().bfloat16()).float())


def test_draws_are_reproducible_and_not_those_of_the_cpu(accelerator):
    def numbers(device, seed):
        generator = torch.Generator(device).manual_seed(seed)
        assert generator.device.type == torch.device(device).type
        assert generator.initial_seed() == seed
        kwargs = {"generator": generator, "device": device}
        return [
            torch.randn(5, **kwargs).cpu(),
            torch.rand(5, **kwargs).cpu(),
            torch.randint(100, (5,), **kwargs).cpu(),
            torch.randperm(20, **kwargs).cpu(),
            torch.empty(5, device=device).normal_(generator=generator).cpu(),
        ]

    again = numbers(accelerator, 3)
    for a, b, c, d in zip(
        numbers(accelerator, 3), again, numbers(accelerator, 4), numbers("cpu", 3), strict=True
    ):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert not torch.equal(a, d)


def test_the_global_seed_is_the_devices_too(accelerator):
    torch.manual_seed(1)
    first = torch.randn(3, device=accelerator)
    assert not torch.equal(first, torch.randn(3, device=accelerator))
    torch.manual_seed(1)
    assert torch.equal(first, torch.randn(3, device=accelerator))


def test_generators_serve_one_device(accelerator, x):
    own, cpus = torch.Generator(accelerator), torch.Generator()
    assert isinstance(cpus, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)
    for wrong in (
        lambda: torch.randn(3, generator=own),
        lambda: torch.zeros(3).normal_(generator=own),
        lambda: torch.randn(3, generator=cpus, device=accelerator),
        lambda: x.normal_(generator=cpus),
    ):
        with pytest.raises(RuntimeError, match="device type for generator"):
            wrong()


def test_copies_and_states(accelerator):
    net = network().to(accelerator)
    twin = copy.deepcopy(net)
    assert {p.device for p in twin.parameters()} == {accelerator}
    nn.init.zeros_(twin[0].weight)
    assert net[0].weight.any()
    twin.load_state_dict(network().state_dict())
    assert torch.equal(twin[0].weight, net[0].weight)
    assert net[0].weight.detach().cpu().numpy().any()
    back = net.to("cpu")
    assert_close(back[0].weight, network()[0].weight)


def test_the_cpu_is_left_as_it_was(accelerator):
    a, b = draw(3, 3), draw(3, 3)
    with syncs() as count:
        (a @ b).sum().item()
        a[a > 0]
        a.numpy()
        copy.deepcopy(a).tolist()
    assert not count.lines
    leaf = a.clone().requires_grad_()
    leaf.exp().sum().backward()
    assert torch.equal(leaf.grad, a.exp())
