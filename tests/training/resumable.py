"""A training to be killed: ``python resumable.py <images|vectors> <folder>`` logs every row."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from submanifold.data.batches import Batches
from submanifold.flows import Glow, RealNVP
from submanifold.manifold import Hierarchy, Objective, Stage
from submanifold.training.trainer import TrainingSettings, fit

STEPS = {"images": 36, "vectors": 120}
EVERY = {"images": 6, "vectors": 15}


def train(kind, folder, on_log=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if kind == "images":
        data = rng.integers(0, 256, (100, 3, 8, 8), dtype=np.uint8)
        stages = [Stage(Glow((3, 8, 8), 2, 2, 8), 24), Stage(RealNVP(24, 2), 6)]
        objective = Objective("huber", 1.0, delta=0.1)
    else:
        data = rng.standard_normal((200, 6)).astype(np.float32) @ np.triu(np.ones((6, 6), "f"))
        stages = [Stage(RealNVP(6), 2)]
        objective = Objective("mse", 1.0)
    hierarchy = Hierarchy(stages)
    settings = TrainingSettings(
        steps=STEPS[kind],
        batch_size=16,
        learning_rate=3e-3,
        warmup=5,
        schedule="cosine",
        clip=1.0,
        ema=0.9,
        validate_every=EVERY[kind],
        precision="auto",
        recompute=False,
    )
    train_set, valid_set = Batches(data[20:], 16, seed=7), Batches(data[:20], 16, seed=8)
    history = fit(hierarchy, objective, train_set, valid_set, settings, folder, kind, on_log)
    return hierarchy, history


def slow_log(step, row):
    print(step, flush=True)
    time.sleep(0.05)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), slow_log)
