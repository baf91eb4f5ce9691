"""Bits of the density phase by weight decay, schedule and number of steps, over seeds.

    python -m benchmarks.optimizer photos celeba=img_align_celeba.zip folder=rooms.zip

Trainings have the default's flow and a complete cooldown. Bits are those of the best validation
(512 images). ``before`` was the default until 9edbfd0c.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pandas as pd
import torch

from submanifold.config.project import configure, project_folder
from submanifold.evaluation.intervals import interval_over_seeds
from submanifold.runs.experiments import CachedRun
from submanifold.training import optimizers
from submanifold.training.phases import train_phase

SETTINGS = {  # decay, cooldown, iterations of Muon
    "before": (0.0, 0.5, 4),
    "decay 0.1": (0.1, 0.8, 3),
    "default": (0.3, 0.8, 3),
    "decay 0.5": (0.5, 0.8, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("datasets", nargs="+", metavar="DATASET[=PATH]")
    parser.add_argument("--settings", nargs="+", default=["before", "default"], choices=SETTINGS)
    parser.add_argument("--steps", type=int, nargs="+", default=[1400, 2800])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=Path("optimizer.csv"))
    options = parser.parse_args()
    configure(project_folder())
    rows: list[dict[str, object]] = []
    for steps in options.steps:
        for seed in range(options.seeds):
            for dataset in options.datasets:
                key = {"dataset": dataset.partition("=")[0], "steps": steps, "seed": seed}
                bits = {name: best_bits(dataset, name, steps, seed) for name in options.settings}
                rows.append(key | bits)
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(options.csv, index=False)
    for key, of_key in pd.DataFrame(rows).groupby(["dataset", "steps"]):
        for name in options.settings:
            bits = interval_over_seeds(of_key[name].to_list())
            change = interval_over_seeds((of_key[name] - of_key[options.settings[0]]).to_list())
            print(*key, name, *(f"{v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
                                for v in (bits, change)), sep=", ")  # fmt: skip


def best_bits(dataset: str, name: str, steps: int, seed: int) -> float:
    """Train the density phase, and return the bits per dimension of its best validation."""
    name_of_data, _, path = dataset.partition("=")
    data = {"data": {"path": str(Path(path).resolve())}} if path else {}
    params = {"dataset": name_of_data, "method": "Glow", "seed": seed, **data}
    run = CachedRun(dataset, params, project_folder())
    if not run.catalog.exists("x_valid"):
        run.run("x_valid")
    phase = run.settings.trainings["density"]
    decay, cooldown, iterations = SETTINGS[name]
    changes = {"steps": steps, "cooldown_fraction": cooldown}
    training = phase.training.model_copy(update=changes)
    phase = phase.model_copy(update={"training": training})
    with (
        TemporaryDirectory() as folder,
        patch.object(optimizers, "WEIGHT_DECAY", decay),
        patch.object(optimizers, "ITERATIONS", iterations),
    ):
        _, history = train_phase(
            phase, run.settings.model, None, run.load("x_train"), run.load("x_valid"), seed,
            torch.device("cpu"), folder, "density",
        )  # fmt: skip
    return min(row["bits_per_dim"] for row in history["valid"])


if __name__ == "__main__":
    main()
