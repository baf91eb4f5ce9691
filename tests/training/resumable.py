"""Trainings to be killed: ``python resumable.py <kind> <folder>`` logs every row."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from submanifold.data.batches import Batches
from submanifold.flows import Glow, RealNVP
from submanifold.losses import Loss
from submanifold.models import Hierarchy, ModelSettings, Stage
from submanifold.training import (
    Phase,
    PhaseRun,
    PhaseSettings,
    TrainingSettings,
    encode_rows,
    fit,
    train_phase,
)

STEPS = {"images": 36, "vectors": 120}
EVERY = {"images": 6, "vectors": 15}


SETTINGS = {
    "steps": 24,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "muon_lr": 0.01,
    "warmup": 5,
    "cooldown_fraction": 0.5,
    "clip": 1.0,
    "ema": 0.9,
    "validate_every": 6,
    "precision": "auto",
}


def settings(**changes):
    return TrainingSettings(**{**SETTINGS, **changes})


def train(kind, folder, on_log=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if kind == "images":
        data = rng.integers(0, 256, (100, 3, 8, 8), dtype=np.uint8)
        stages = [Stage(Glow((3, 8, 8), 2, 2, 8), 24), Stage(RealNVP(24, 2), 6)]
        loss = Loss(reconstruction={"penalty": "huber", "weight": 1.0, "delta": 0.1})
    else:
        data = rng.standard_normal((200, 6)).astype(np.float32) @ np.triu(np.ones((6, 6), "f"))
        stages = [Stage(RealNVP(6), 2)]
        loss = Loss(reconstruction={"penalty": "mse", "weight": 1.0})
    hierarchy = Hierarchy(stages)
    train_set, valid_set = Batches(data[20:], 16, seed=7), Batches(data[:20], 16, seed=8)
    how = settings(steps=STEPS[kind], validate_every=EVERY[kind])
    history = fit(Phase(hierarchy, loss, how), train_set, valid_set, folder, kind, on_log)
    return hierarchy, history


MODEL = ModelSettings(
    stages=[
        # a rotation at first, whose small numbers show a rounding error
        {"flow": {"type": "glow", "levels": 2, "steps": 1, "width": 8, "whiten": False}, "dim": 24},
        {"flow": {"type": "realnvp", "couplings": 2, "mixing": True}, "dim": 6},
    ]
)


def phase(*stages, weight=1.0, space="latent", **changes):
    """A phase in single precision; the squared error has a weight."""
    reconstruction = {"penalty": "mse", "weight": weight, "space": space}
    if not weight:
        reconstruction = {"penalty": "none"}
    how = settings(precision="float32", **changes)
    return PhaseSettings(stages=stages, reconstruction=reconstruction, training=how)


def smooth_images(n):
    """Float images, which get no noise."""
    low = np.random.default_rng(0).uniform(-0.4, 0.4, (n, 3, 2, 2))
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, (n, 3, 8, 8))
    return (np.kron(low, np.ones((4, 4))) + noise).astype(np.float32)


def train_phases(folder, on_log=None):
    """Train a Glow, then a RealNVP whose penalty compares images: model, and both histories."""
    torch.set_num_threads(1)
    images, device = smooth_images(100), torch.device("cpu")
    train, valid = images[20:], images[:20]

    def one(number, phase, before, train, valid):
        name = f"phase_{number}"
        run = PhaseRun(name, 7, device, folder / name, on_log)
        return train_phase(phase, MODEL, before, train, valid, run)

    model, first = one(1, phase(1), None, train, valid)
    u = [encode_rows(model, rows, 7, device) for rows in (train, valid)]
    model, second = one(2, phase(2, space="image"), model, *u)
    return model, [first, second]


def slow_log(*row):
    print(*row[:-1], flush=True)
    time.sleep(0.05)


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "phases":
        train_phases(folder, slow_log)[0].save(folder / "model.safetensors")
    else:
        train(kind, folder, slow_log)
