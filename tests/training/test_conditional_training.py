"""Training of conditional models: contexts travel with batches, shards and encoded coordinates."""

import numpy as np
import pytest
import torch

from submanifold.data import Events
from submanifold.flows import Context, RealNVP, make_conditional
from submanifold.losses import Loss
from submanifold.models import Hierarchy, ModelSettings, Stage, classify
from submanifold.training import Phase, RotationSettings, Trainer, TrainingSettings
from submanifold.training.phases import PhaseSettings, train_phases

TRAINING = {
    "steps": 30,
    "batch_size": 100,
    "warmup": 5,
    "validate_every": 30,
    "precision": "float32",
}


def clusters(count):
    """Points around three corners of R^4, with the number of the corner as context."""
    rng = np.random.default_rng(count)
    labels = rng.integers(0, 3, count)
    points = 0.5 * rng.normal(size=(count, 4)) + 3 * np.eye(4)[labels]
    return Events(points.astype(np.float32), labels)


def test_all_phases_are_given_the_context(tmp_path):
    flow = {"type": "realnvp", "couplings": 4, "hidden": 32}
    model = ModelSettings.model_validate(
        {"stages": [{"flow": {**flow, "mixing": True}, "dim": 2}, {"flow": flow, "dim": 2}]}
    )
    phases = {
        "density": PhaseSettings.model_validate({"stages": (1,), "training": TRAINING}),
        "rotation": RotationSettings(rotate=1),
        "code": PhaseSettings.model_validate({"stages": (2,), "training": TRAINING}),
    }
    train, valid = clusters(1000), clusters(200)
    bits = []
    for given in (True, False):
        data = (train, valid) if given else (train.x, valid.x)
        folder = tmp_path / str(given)
        trained = train_phases(phases, model, *data, 0, torch.device("cpu"), folder)
        x, labels = torch.from_numpy(valid.x), torch.from_numpy(valid.context)
        bits.append(trained.bits_per_dim(x, context=labels if given else None).mean().item())
        if given:
            assert (classify(trained, x).argmax(1) == labels).float().mean() > 0.95
    assert bits[0] < bits[1] - 0.1


@pytest.mark.parametrize("parts", [1, 4])
def test_shards_have_their_rows_of_the_context(parts):
    torch.manual_seed(0)
    flow = make_conditional(RealNVP(4, couplings=2, hidden=8), classes=3)
    model = Hierarchy([Stage(flow, 2)])
    events = clusters(12)
    x, labels = torch.from_numpy(events.x), torch.from_numpy(events.context)
    settings = TRAINING | {"batch_size": 12, "grad_accumulation_steps": parts}
    trainer = Trainer(Phase(model, Loss(), TrainingSettings(**settings)))
    with torch.no_grad():
        expected = model.bits_per_dim(x, context=labels).mean()
    found = trainer.step(x, None, Context(labels))["bits_per_dim"]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="context: expected one row"):
        trainer.step(x)
