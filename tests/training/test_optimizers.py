import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from submanifold.flows import Glow, RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.training.optimizers import (
    ITERATIONS,
    Muon,
    matrices_of,
    optimizers_for,
    orthogonalize,
)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_orthogonalize_equalizes_singular_values(n, rows, columns, scale):
    generator = torch.Generator().manual_seed(rows + 13 * columns)
    bases = [torch.linalg.qr(torch.randn(n, k, k, generator=generator))[0] for k in (rows, columns)]
    rank = min(rows, columns)
    values = torch.logspace(0, -4, rank)
    left, right = bases[0][:, :, :rank], bases[1][:, :, :rank]
    matrices = scale * left * values @ right.mT
    made = left.mT @ orthogonalize(matrices) @ right
    lengths, shares = made.diagonal(dim1=1, dim2=2), values / values.norm()
    near = lengths[:, shares >= 1 / 55]
    assert ((near > 0.68) & (near < 1.21)).all()
    growth = (lengths / shares)[:, shares < 1 / 55]
    assert ((growth > 36) & (growth < 41)).all()
    torch.testing.assert_close(made, torch.diag_embed(lengths), atol=1e-4, rtol=0)


def descend(make, weights, steps=3):
    optimizer = make(weights)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weights


@pytest.mark.parametrize("shapes", [[(6, 4), (4, 6)], [(5, 5), (5, 5), (8, 3)]])
def test_updates_of_matrices_equal_torchs_muon(shapes):
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(9)) for shape in shapes]
    mine = descend(lambda w: Muon(w, 0.1), [nn.Parameter(w.clone()) for w in start])
    theirs = descend(
        lambda w: torch.optim.Muon(w, 0.1, weight_decay=0, ns_steps=ITERATIONS),
        [nn.Parameter(w.clone()) for w in start],
    )
    for first, second, before in zip(mine, theirs, start, strict=True):
        assert (first - before).norm() > 0.1
        # torch's iteration is in bfloat16
        torch.testing.assert_close(first, second, atol=0.02, rtol=0)


def test_a_convolution_is_updated_as_a_matrix_in_any_memory_format():
    start = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    (flat,) = descend(lambda w: Muon(w, 0.1), [nn.Parameter(start.flatten(1).clone())], steps=1)
    other = nn.Parameter(start.contiguous(memory_format=torch.channels_last))
    other.grad = torch.randn(6, 36, generator=torch.Generator().manual_seed(0)).view_as(other)
    Muon([other], 0.1).step()
    decayed = flat - 0.3 * 0.1 * start.flatten(1)
    torch.testing.assert_close(other.flatten(1), decayed)


def hierarchy():
    return Hierarchy([Stage(Glow((3, 8, 8), 2, 2, 8), 20), Stage(RealNVP(20, 2), 10)])


def test_muon_updates_matrices_of_coupling_networks_and_adam_the_rest():
    model = hierarchy()
    muon, adam = optimizers_for(model, 0.01, 0.02)
    held = [[p for group in each.param_groups for p in group["params"]] for each in (muon, adam)]
    assert (len(held[0]), len(held[1])) == (4 * 3 + 2 * 3, len([*model.parameters()]) - 18)
    assert {id(p) for p in held[0]} == {id(p) for p in matrices_of(model)}
    assert {id(p) for p in held[0] + held[1]} == {id(p) for p in model.parameters()}
    assert all(p.ndim > 1 for p in held[0])
    assert (muon.defaults["lr"], adam.defaults["lr"]) == (0.02, 0.01)


@pytest.mark.parametrize(("muon_lr", "rate"), [(0.02, 0.05), (None, 0.001)])
def test_beside_muon_second_moments_are_averaged_over_twenty_steps(muon_lr, rate):
    model = hierarchy()
    optimizer = optimizers_for(model, 0.01, muon_lr)[-1]
    weight = optimizer.param_groups[0]["params"][0]
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = optimizer.state[weight]
    torch.testing.assert_close(moments["exp_avg"], 0.1 * weight.grad)
    torch.testing.assert_close(moments["exp_avg_sq"], rate * weight.grad)


@pytest.mark.parametrize(("hidden", "matrices"), [(128, 3), (129, 2)])
def test_adam_updates_large_matrices_of_vector_couplings(hidden, matrices):
    coupling = RealNVP(20, couplings=1, hidden=hidden)
    left = {tuple(weight.shape) for weight in matrices_of(coupling)}
    assert len(matrices_of(coupling)) == matrices
    assert ((hidden, hidden) in left) == (hidden <= 128)
