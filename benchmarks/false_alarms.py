"""Rates of false alarms over random splits, and what the choice of the checkpoint changes.

    python -m benchmarks.false_alarms img_align_celeba.zip

For each split, the density phase of the default method trains on 60% of the images, with a
validation every 50 steps on ``chosen`` (10%), which choose its checkpoint. The p-values of the test
images (20%) are calibrated on these images, and on others (``unused``, 10%) that chose nothing.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from submanifold.config.resolve import default_method
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.intervals import interval_over_seeds
from submanifold.evaluation.scores import QUICK, score
from submanifold.inference.inputs import read_images
from submanifold.training.phases import train_phase

FORM = {"size": 32, "channels": 3, "crop": "square", "margin": 0}
SHARES = 0.6, 0.1, 0.1
RATES = 0.01, 0.05, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    images = read_images([options.images], FORM).events
    rates = pd.DataFrame(
        [
            {"seed": seed, "calibrated on": part, **of_part}
            for seed in range(options.splits)
            for part, of_part in measure(images, seed, options.steps).items()
        ]
    )
    print(rates.to_string(index=False))
    by_part = {part: of_part[[*RATES]] for part, of_part in rates.groupby("calibrated on")}
    by_part["difference"] = by_part["chosen"].reset_index() - by_part["unused"].reset_index()
    for part, values in by_part.items():
        for rate in RATES:
            mean = interval_over_seeds(values[rate].to_list())
            print(
                f"{part}, {rate:.0%}: {mean['value']:.2%} [{mean['low']:.2%}, {mean['high']:.2%}]"
            )


def measure(images: np.ndarray, seed: int, steps: int) -> dict[str, dict[float, float]]:
    """Return the rates of flagged test images, by the images that calibrate and by alpha."""
    order = np.random.default_rng([seed, 14]).permutation(len(images))
    parts = np.split(order, (np.cumsum(SHARES) * len(images)).astype(int))
    train, chosen, unused, test = (images[part] for part in parts)
    model, phases = default_method("photos", 500)
    changes = {"steps": steps, "validate_every": 50}
    training = phases["density"].training.model_copy(update=changes)
    phase = phases["density"].model_copy(update={"training": training})
    with TemporaryDirectory() as folder:
        on = torch.device("cpu")
        trained, _ = train_phase(phase, model, None, train, chosen, seed, on, folder, "density")
    scores, rates = score(trained, test), {}
    for part, normal in {"chosen": chosen, "unused": unused}.items():
        calibration = Calibration.fit(score(trained, normal), QUICK)
        values = calibration.complete(scores)[COMBINATION]
        p_values = calibration.p_values(COMBINATION, values)
        rates[part] = {rate: float((p_values <= rate).mean()) for rate in RATES}
    return rates


if __name__ == "__main__":
    main()
