import numpy as np
import pytest
import torch
from resumable import settings

from submanifold.common.errors import UserError
from submanifold.data import Events
from submanifold.data.batches import Batches
from submanifold.flows import Glow
from submanifold.losses import Loss
from submanifold.models import Hierarchy, Stage
from submanifold.training import Phase, Trainer, checkpoint


def trainer(seed, kind):
    torch.manual_seed(seed)
    model = Hierarchy([Stage(Glow((3, 8, 8), 2, 2, 8), 20)])
    how = settings(muon_lr=0.02 if kind == "muon" else None)
    loss = Loss(reconstruction={"penalty": "mse", "weight": 1.0})
    made = Trainer(Phase(model, loss, how))
    if kind == "loop":
        made.optimizers = [torch.optim.Adam(model.parameters(), lr=0.01)]
    return made


def advance(trainer, steps):
    for step in steps:
        trainer.step(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)))


@pytest.mark.parametrize("kind", ["fused", "loop", "muon"])
def test_a_restored_training_takes_the_same_steps(tmp_path, kind):
    full, restored = trainer(0, kind), trainer(1, kind)
    advance(full, range(3))
    full.best, full.state.warnings = {"a": torch.ones(2)}, {"kind": "text"}
    full.save(tmp_path)
    # weights of 3x3 convolutions lie in memory channels last, and a file has them channels first
    assert any(not p.is_contiguous() for p in full.weights)
    assert restored.restore(tmp_path)
    assert restored.state == full.state
    assert torch.equal(restored.best["a"], full.best["a"])
    for mine, theirs in zip(restored.weights, full.weights, strict=True):
        for first, second in zip(full.optimizers, restored.optimizers, strict=True):
            assert (theirs in first.state) == (mine in second.state)
            for name, value in first.state.get(theirs, {}).items():
                assert torch.equal(second.state[mine][name], value)
                assert second.state[mine][name].stride() == value.stride()
    assert len(full.optimizers) == 1 + (kind == "muon")
    assert sum(len(each.state) for each in full.optimizers) == len(full.weights)
    advance(full, range(3, 6))
    advance(restored, range(3, 6))
    assert all(map(torch.equal, restored.weights, full.weights))
    assert all(map(torch.equal, restored.average, full.average))


ROWS = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (200, 3, 4, 4), dtype=np.uint8)
CLASSES = np.arange(5000) % 3


def with_another_row(array):
    changed = array.copy()
    changed[-1] = array[0]
    return changed


@pytest.mark.parametrize(
    ("array", "changed", "name"),
    [
        (ROWS, with_another_row(ROWS), "data"),
        (PIXELS, with_another_row(PIXELS), "data"),
        (Events(ROWS, CLASSES), Events(ROWS, with_another_row(CLASSES)), "context"),
        (
            Events(ROWS, ROWS[:, :2]),
            Events(ROWS, with_another_row(ROWS[:, :2])),
            "context",
        ),
    ],
    ids=["rows", "images", "classes", "variables"],
)
def test_data_of_another_training_differ_in_one_event(tmp_path, array, changed, name):
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, Batches(array, 4).identity, {})
    assert checkpoint.read(Batches(array, 4).identity, path) is not None
    with pytest.raises(UserError, match=f"this training, got one with other {name}"):
        checkpoint.read(Batches(changed, 4).identity, path)
