import pytest
import torch

from submanifold.flows import Glow
from submanifold.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from submanifold.training.optimizers import EMA, optimizers_for


def parts(seed, kind):
    torch.manual_seed(seed)
    module = Glow((3, 8, 8), 2, 2, 8)
    if kind == "loop":
        optimizers = [torch.optim.Adam(module.parameters(), lr=0.01)]
    else:
        optimizers = optimizers_for(module, 0.01, 0.02 if kind == "muon" else None)
    return module, EMA(module, 0.9), optimizers


def advance(module, ema, optimizers, steps):
    for step in steps:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        z, log_det = module(x)
        (z.square().sum() - log_det.sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ema.update(step)


@pytest.mark.parametrize("kind", ["fused", "loop", "muon"])
def test_a_restored_training_takes_the_same_steps(tmp_path, kind):
    full = parts(0, kind)
    advance(*full, range(3))
    best = {"a": torch.ones(2)}
    save_checkpoint(tmp_path / "c", *full, {"step": 3, "rows": [1.5]}, best)
    # weights of 3x3 convolutions lie in memory channels last, and a file has them channels first
    assert any(not p.is_contiguous() for p in full[0].parameters())
    restored = parts(1, kind)
    state, kept = load_checkpoint(read_checkpoint(tmp_path / "c"), *restored)
    assert state == {"step": 3, "rows": [1.5]}
    assert torch.equal(kept["a"], best["a"])
    for mine, theirs in zip(restored[0].parameters(), full[0].parameters(), strict=True):
        for first, second in zip(full[2], restored[2], strict=True):
            assert (theirs in first.state) == (mine in second.state)
            for name, value in first.state.get(theirs, {}).items():
                assert torch.equal(second.state[mine][name], value)
                assert second.state[mine][name].stride() == value.stride()
    assert len(full[2]) == 1 + (kind == "muon")
    assert sum(len(each.state) for each in full[2]) == len(list(full[0].parameters()))
    advance(*full, range(3, 6))
    advance(*restored, range(3, 6))
    assert all(map(torch.equal, restored[0].parameters(), full[0].parameters()))
    assert all(map(torch.equal, restored[1].average, full[1].average))
