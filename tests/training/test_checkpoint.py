import pytest
import torch
from torch import nn

from submanifold.common.errors import UserError
from submanifold.flows import Glow
from submanifold.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from submanifold.training.optimizers import EMA, optimizers_for


def test_the_average_follows_its_formula():
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, 5.0)
    ema, expected = EMA(weight, 0.5), 5.0
    for step in range(30):
        nn.init.constant_(weight.weight, float(step))
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert ema.average[0].item() == pytest.approx(expected, rel=1e-5)


def test_swapping_twice_changes_nothing():
    weight = nn.Linear(3, 3)
    ema = EMA(weight, 0.9)
    nn.init.normal_(weight.weight)
    trained, average = weight.weight.clone(), ema.average[0].clone()
    ema.swap()
    assert torch.equal(weight.weight, average)
    assert torch.equal(ema.average[0], trained)
    ema.swap()
    assert torch.equal(weight.weight, trained)
    assert torch.equal(ema.average[0], average)


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


def test_a_checkpoint_from_before_the_first_step_restores_an_empty_optimizer(tmp_path):
    start = parts(0, "muon")
    save_checkpoint(tmp_path / "c", *start, {}, {})
    advance(*start, range(3))
    load_checkpoint(read_checkpoint(tmp_path / "c"), *start)
    fresh = parts(0, "muon")
    for each in (start, fresh):
        advance(*each, range(2))
    assert all(map(torch.equal, start[0].parameters(), fresh[0].parameters()))


@pytest.mark.parametrize("content", [b"", b"noise" * 100, None])
def test_a_file_that_is_not_a_checkpoint_raises(tmp_path, content):
    made = parts(0, "muon")
    save_checkpoint(tmp_path / "c", *made, {}, {})
    full = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(full[: len(full) // 2] if content is None else content)
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(tmp_path / "c")
