"""Train the default method on a folder of images with functions of the package, without Kedro.

    python examples/train_minimal.py pictures/

The result is that of `submanifold train pictures/`: `model.safetensors`, with the same figures.
"""

import sys
from pathlib import Path

from submanifold.common.device import choose_device
from submanifold.data import Batches
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.models import ModelSettings
from submanifold.training import PhaseSettings, RotationSettings, TrainingSettings, train_phases


def main(
    pictures: str, folder: Path, size: int = 32, dim: int = 500, scale: float = 1.0
) -> dict[str, float]:
    """Train on the images in a folder or zip, resized to ``size`` pixels, with steps * scale."""
    device = choose_device("auto")
    data = ImageSettings(source="folder", path=pictures, size=size)
    train, valid, test, _ = prepare(data, folder / "data", folder / "raw")

    # a flow of images, whose first 500 latents are the manifold, and a flow of these for samples
    glow = {"type": "glow", "levels": 3, "steps": [8, 4, 2], "width": 64, "whiten": True}
    realnvp = {"type": "realnvp", "couplings": 6, "hidden": 512, "mixing": False}
    model = ModelSettings(stages=[{"flow": glow, "dim": dim}, {"flow": realnvp, "dim": None}])

    def training(steps: int, **settings: object) -> TrainingSettings:
        common = {"batch_size": 32, "learning_rate": 0.01, "muon_lr": 0.02, "warmup": 50,
                  "cooldown_fraction": 0.47, "clip": 10.0, "ema": 0.99, "validate_every": 200,
                  "precision": "auto"}  # fmt: skip
        return TrainingSettings(steps=round(scale * steps), **{**common, **settings})

    # the density; then its latents in the order of their contribution to the squared error; then a
    # small penalty on the error at random dimensions, in the last part of one learning-rate
    # schedule; then the same order again, and the flow on the code
    phases = {
        "density": PhaseSettings(stages=[1], training=training(2800, span=(0, 7 / 9))),
        "rotation": RotationSettings(rotate=1, probes=round(scale * 4000)),
        "reconstruction": PhaseSettings(
            stages=[1],
            reconstruction={"penalty": "mse", "weight": 40.0, "random_dim": 5.0},
            training=training(800, span=(7 / 9, 1), warmup=10),
        ),
        "rotation_2": RotationSettings(rotate=1),
        "code_flow": PhaseSettings(
            stages=[2],
            training=training(
                200, batch_size=64, learning_rate=0.0005, muon_lr=None, cooldown_fraction=0.5,
                validate_every=50,
            ),
        ),
    }  # fmt: skip
    hierarchy = train_phases(phases, model, train, valid, 0, device, folder / "checkpoints")
    hierarchy.data = data.facts
    hierarchy.save(folder / "model.safetensors")

    batches = Batches(test, 256, device=device)
    log_prob = per_event(hierarchy.to(device).log_prob, batches)
    errors = squared_errors(hierarchy.encoder_projection, batches)
    return {"bits_per_dim": hierarchy.to_bits_per_dim(log_prob).mean(), "mse": errors.mean()}


if __name__ == "__main__":
    print(main(sys.argv[1], Path()))
