"""Train the default method on a folder of images with functions of the package, without Kedro.

    python examples/train_minimal.py pictures/

The result is that of `submanifold train pictures/`: `model.safetensors`, with the same figures.
"""

import sys
from pathlib import Path

from submanifold.common.device import choose_device
from submanifold.config.resolve import default_method
from submanifold.data import Batches
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.training import train_phases


def main(pictures: str, folder: Path, size: int = 32, dim: int = 500) -> dict[str, float]:
    """Train on the images in a folder or zip, resized to ``size`` pixels."""
    device = choose_device("auto")
    data = ImageSettings(source="folder", path=pictures, size=size)
    train, valid, test, _ = prepare(data, folder / "data", folder / "raw")

    model, phases = default_method("folder", dim)  # settings: conf/base/parameters.yml
    hierarchy = train_phases(phases, model, train, valid, 0, device, folder / "checkpoints")
    hierarchy.data = data.facts
    hierarchy.save(folder / "model.safetensors")

    batches = Batches(test, 256, device=device)
    log_prob = per_event(hierarchy.to(device).log_prob, batches)
    errors = squared_errors(hierarchy.encoder_projection, batches)
    return {"bits_per_dim": hierarchy.to_bits_per_dim(log_prob).mean(), "mse": errors.mean()}


if __name__ == "__main__":
    print(main(sys.argv[1], Path()))
