import pytest
import torch
from torch.func import jvp, vjp

from submanifold.flows import Affine, Glow, RealNVP
from submanifold.flows.fast import kernels
from submanifold.manifold import Hierarchy, Stage
from submanifold.manifold.linearization import Linearization, frozen


def moved(module):
    """Away from the identity that it starts as, a little."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return module


def hierarchy():
    torch.manual_seed(0)
    glow = Stage(Glow((3, 8, 8), levels=2, steps=2, width=8), 40)
    glow.add_rotation()
    return moved(Hierarchy([glow, Stage(RealNVP(40, couplings=2), 12)]))


def test_products_are_those_of_torch():
    model = hierarchy()
    generator = torch.Generator().manual_seed(2)
    u, p = torch.randn(2, 5, 12, generator=generator)
    w = torch.randn(5, 3, 8, 8, generator=generator)
    at = Linearization(model.decode, u)
    image, tangent = jvp(model.decode, (u,), (p,))
    _, pullback = vjp(model.decode, u)
    assert torch.allclose(at.image, image, atol=1e-5)
    assert torch.allclose(at.push(p), tangent, atol=1e-4)
    assert torch.allclose(at.pull(w), pullback(w)[0], atol=1e-4)
    assert torch.allclose(at.pull(w), pullback(w)[0], atol=1e-4)  # again


@pytest.mark.skipif(not kernels.has_steps(torch.float32), reason="no kernels on this machine")
@pytest.mark.parametrize("inverse", [False, True])
def test_the_kernels_tangents_are_those_of_plain_modules(monkeypatch, inverse):
    torch.manual_seed(0)
    glow = moved(Glow((3, 8, 8), levels=2, steps=3, width=20))
    generator = torch.Generator().manual_seed(2)
    x, p = (torch.randn(6, 3, 8, 8, generator=generator) for _ in range(2))
    if inverse:
        x, p = x.flatten(1), p.flatten(1)

    def apply(x):
        return glow.inverse(x) if inverse else torch.cat([glow(x)[0], glow(x)[1][:, None]], 1)

    fast = Linearization(apply, x)
    tangent, gradient = fast.push(p), fast.pull(torch.ones_like(fast.image))
    monkeypatch.setattr(kernels, "library", lambda: None)
    plain = Linearization(apply, x)
    assert torch.allclose(tangent, plain.push(p), rtol=1e-3, atol=1e-3)
    assert torch.allclose(gradient, plain.pull(torch.ones_like(plain.image)), rtol=1e-3, atol=1e-3)


def test_push_is_the_adjoint_of_pull():
    flow = moved(Affine(6)).double()
    u, p, w = torch.randn(3, 4, 6, dtype=torch.float64)
    at = Linearization(flow.inverse, u)
    assert torch.allclose((at.push(p) * w).sum(1), (at.pull(w) * p).sum(1))


def test_weights_get_no_gradient():
    model = hierarchy()
    at = Linearization(model.decode, torch.randn(2, 12))
    at.pull(torch.ones(2, 3, 8, 8))
    assert all(weight.grad is None for weight in model.parameters())


def test_weights_are_frozen_for_a_while_and_as_before_after_it():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)

    def fail():
        with frozen(model):
            assert not any(weight.requires_grad for weight in model.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.weight.requires_grad
    assert not model.bias.requires_grad
