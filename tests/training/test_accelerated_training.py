"""Training on the simulated device: the CPU's weights, and no wait but where it logs."""

import numpy as np
import pytest
import torch
from resumable import MODEL, phase, smooth_images, train_phases

from accelerator import accelerator, syncs
from submanifold.data.batches import Batches
from submanifold.flows import set_activation_checkpointing
from submanifold.flows.fast import kernels
from submanifold.losses import Objective
from submanifold.models import Hierarchy
from submanifold.training import optimizers
from submanifold.training.trainer import Trainer, fit, read

__all__ = ["accelerator"]  # a fixture

# Muon makes all directions of a gradient as long, those that are nothing but rounding too
FAST = {"steps": 12, "validate_every": 6, "learning_rate": 1e-3, "muon_lr": None}


def test_two_phases_end_with_the_cpus_weights(accelerator, tmp_path, monkeypatch):
    # another Adam rounds otherwise, which shows where a gradient is nothing but rounding
    monkeypatch.setattr(optimizers, "supports_fused_optimizer", lambda weight: False)
    monkeypatch.setattr(kernels, "library", lambda: None)  # and so do the CPU's kernels
    expected, histories = train_phases(tmp_path / "cpu", **FAST)
    found, others = train_phases(tmp_path / "device", device=accelerator, **FAST)
    for (name, p), q in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    for history, other in zip(histories, others, strict=True):
        for part in ("train", "valid"):
            for row, same in zip(history[part], other[part], strict=True):
                row.pop("rows_per_second", None)
                assert {key: same[key] for key in row} == pytest.approx(row, rel=1e-4, abs=1e-6)


def parts(number, device):
    """The stages of a phase, its objective, and the settings."""
    torch.manual_seed(0)
    hierarchy = Hierarchy(MODEL.build((3, 8, 8))).to(device)
    outer = hierarchy.part(1, 1).requires_grad_(False) if number == 2 else None
    this = phase(number, space="image" if outer else "latent", steps=40, validate_every=40)
    model = hierarchy.part(number, number)
    return model, Objective(this.terms, 0.1 * (number == 2), outer), this.training


def rows(model, n=64):
    return (
        smooth_images(n)
        if len(model.event_shape) == 3
        else np.float32(np.random.default_rng(0).standard_normal((n, *model.event_shape)))
    )


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_a_step_waits_for_nothing_and_reading_it_once(accelerator, number, recompute):
    model, objective, settings = parts(number, accelerator)
    set_activation_checkpointing(model, recompute)
    trainer = Trainer(model, objective, settings)
    batches = Batches(rows(model), 16, 0, accelerator)
    taken = [batches.at(step) for step in range(20)]
    start = [p.detach().clone() for p in model.parameters()]
    with syncs() as count:
        for batch in taken:
            values = trainer.step(batch, batches.generator)
    assert not count.lines
    with syncs() as count:
        row = read(values)
    assert [kind for kind, _ in count.waits] == ["download"]
    assert not count.uploads
    assert set(row) == {
        "loss", "likelihood", "reconstruction", "bits_per_dim", "mse", "gradient_norm"
    }  # fmt: skip
    assert not any(map(torch.equal, start, model.parameters()))


def test_training_waits_once_at_each_line_of_its_log(accelerator, tmp_path):
    model, objective, settings = parts(1, accelerator)
    counts = []
    train = Batches(rows(model, 64 * 16), 16, 0, accelerator)
    assert train.steps_per_epoch > settings.steps
    with syncs() as count:

        def on_log(step, row):
            counts.append((step, count.total, len(count.uploads)))

        fit(model, objective, train, Batches(rows(model), 16, 0, accelerator), settings, tmp_path,
            on_log=on_log)  # fmt: skip
    steps, waits, uploads = np.array(counts[:3]).T
    assert steps.tolist() == [10, 20, 30]
    assert np.diff(waits).tolist() == [1, 1]
    assert np.diff(uploads).tolist() == [0, 0]
