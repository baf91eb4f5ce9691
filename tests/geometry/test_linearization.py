import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.func import jvp as torch_jvp
from torch.func import vjp as torch_vjp

from strategies import perturb
from submanifold.flows import Glow, RealNVP
from submanifold.geometry.linearization import Linearization, jvp
from submanifold.models import Hierarchy, Stage


def hierarchy():
    torch.manual_seed(0)
    glow = Stage(Glow((3, 8, 8), levels=2, steps=2, width=8), 40)
    glow.add_rotation()
    return perturb(Hierarchy([glow, Stage(RealNVP(40, couplings=2), 12)]))


def test_products_equal_those_of_torch():
    model = hierarchy()
    generator = torch.Generator().manual_seed(2)
    u, p = torch.randn(2, 5, 12, generator=generator)
    w = torch.randn(5, 3, 8, 8, generator=generator)
    at = Linearization(model.decode, u)
    image, tangent = torch_jvp(model.decode, (u,), (p,))
    _, pullback = torch_vjp(model.decode, u)
    assert torch.allclose(at.image, image, atol=1e-5)
    assert torch.allclose(at.jvp(p), tangent, atol=1e-4)
    assert torch.allclose(at.vjp(w), pullback(w)[0], atol=1e-4)
    assert torch.allclose(at.vjp(w), pullback(w)[0], atol=1e-4)  # again


def test_threads_share_the_level_of_forward_differentiation():
    inside, left = threading.Event(), threading.Event()

    def decode(u):
        inside.set()
        assert left.wait(10), "the other thread has finished"
        return u**2

    one = torch.ones(1, 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(jvp, decode, one, one)
        assert inside.wait(10)
        assert jvp(lambda u: u**3, one, one) == 3
        left.set()
        assert first.result() == 2
    with pytest.raises(RuntimeError, match="Nested forward mode"):
        jvp(lambda u: jvp(torch.sin, torch.zeros(1, 1), one) * u, one, one)
    assert jvp(torch.sin, 0 * one, one) == 1


def test_threads_share_a_model():
    """Half of the threads project, the others compute gradients of weights."""
    model = perturb(Hierarchy([Stage(Glow((1, 4, 4), levels=1, steps=1, width=4), 3)]))
    x = torch.rand(84, 2, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5
    weights = [*model.parameters()]

    def gradient(events):
        found = torch.autograd.grad(model.log_prob(events).sum(), weights)
        return torch.cat([each.flatten() for each in found])

    tasks = 4 * [model.project] + 80 * [gradient]  # which take about as long
    expected = [task(events) for task, events in zip(tasks, x, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda task, events: task(events), tasks, x)]
    for together, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
