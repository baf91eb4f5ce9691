"""Computations on a simulated device return the results of the CPU."""

import numpy as np
import pytest
import torch

from accelerator import syncs
from submanifold.config.schema import Experiment
from submanifold.data import batches
from submanifold.data.batches import Batches
from submanifold.data.settings import ImageSettings
from submanifold.data.synthetic import Circle
from submanifold.evaluation.truth import manifold_picture
from submanifold.flows import Affine, RealNVP
from submanifold.geometry.volume import estimate_log_volume, log_volume
from submanifold.models import Hierarchy, Model, Stage
from submanifold.training.cost import training_seconds

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 3, 4, 4), dtype=np.uint8)


def small():
    torch.manual_seed(0)
    return Hierarchy([Stage(Affine(6), 4), Stage(RealNVP(4), 2)])


def test_model_is_loaded_to_the_device(accelerator, tmp_path):
    hierarchy, x = small(), torch.randn(3, 6)
    hierarchy.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model", accelerator)
    torch.testing.assert_close(loaded.log_prob(x.to(accelerator)).cpu(), hierarchy.log_prob(x))
    generator = torch.Generator().manual_seed(0)
    samples = loaded.sample(5, generator=generator)
    assert samples.device.type == "sim"
    torch.testing.assert_close(
        samples.cpu(), hierarchy.sample(5, generator=generator.manual_seed(0))
    )


def test_volume_on_the_device_equals_the_cpus(accelerator):
    hierarchy, u = small(), torch.randn(3, 2)
    exact = log_volume(hierarchy.decode, u)
    hierarchy.to(accelerator)
    torch.testing.assert_close(log_volume(hierarchy.decode, u.to(accelerator)).cpu(), exact)
    estimate, _ = estimate_log_volume(hierarchy.decode, u.to(accelerator), probes=20)
    torch.testing.assert_close(estimate.cpu(), exact, rtol=0, atol=0.3)


@pytest.mark.parametrize("largest", [0, 2**30], ids=["from the host", "on the device"])
def test_batches_are_on_the_device_without_synchronization(accelerator, monkeypatch, largest):
    monkeypatch.setattr(batches, "DEVICE_BYTES", largest)
    made = Batches(IMAGES, 8, seed=1, device=accelerator)
    with syncs() as count:
        for step in range(7):  # more than two epochs
            assert made.at(step).device.type == "sim"
    assert count.total == 0
    assert not count.uploads
    assert next(iter(made)).device.type == "sim"
    order = [Batches(IMAGES, 8, seed=1).at(step) for step in range(3)]
    assert len(torch.cat(order).unique(dim=0)) == 24


def test_training_time_is_measured_on_the_device(accelerator, monkeypatch):
    training = {
        "steps": 4, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0, "cooldown_fraction": 0.0,
        "clip": 1.0, "ema": 0.9, "validate_every": 2, "precision": "float32",
    }  # fmt: skip
    flow = {"type": "glow", "levels": 1, "steps": 1, "width": 4}
    stages = [{"flow": flow, "dim": 9}, {"flow": {"type": "realnvp"}, "dim": 3}]
    inner = {"penalty": "mse", "weight": 1.0, "space": "image"}
    experiment = Experiment(
        dataset="photos", method="two", seed=0, device="sim",
        data=ImageSettings(size=8), model={"stages": stages},
        phases=[
            {"stages": [1], "training": training},
            {"stages": [2], "training": training, "reconstruction": inner},
        ],
        evaluation={"samples": 10},
    )  # fmt: skip
    used, forward = set(), Hierarchy.trace
    monkeypatch.setattr(
        Hierarchy, "trace", lambda self, x, draw: used.add(x.device.type) or forward(self, x, draw)
    )
    for number in (1, 2):
        assert training_seconds(experiment, number) > 0
    assert used == {"sim"}


def test_manifold_picture_on_the_device_equals_the_cpus(accelerator):
    torch.manual_seed(0)
    hierarchy, truth = Hierarchy([Stage(RealNVP(2, 2, 8, mixing=True), 1)]), Circle()
    test = truth.sample(40, np.random.default_rng(0)).astype(np.float32)
    points, grid = manifold_picture(hierarchy, truth, test, test)
    there, grid_there = manifold_picture(hierarchy.to(accelerator), truth, test, test)
    np.testing.assert_allclose(there["projections"], points["projections"], atol=1e-5)
    for mine, other in zip(grid_there, grid, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
