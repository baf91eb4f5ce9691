"""Bits of the first phase by weight decay, schedule and number of steps, over seeds.

    python -m benchmarks.optimizer photos celeba=img_align_celeba.zip folder=rooms.zip
    python -m benchmarks.optimizer photos --method PR-D --values bits_per_dim mse inverse_error

Trainings have the default's flow and a complete cooldown. Values are those of the best validation
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
    parser.add_argument("--method", default="Glow")
    parser.add_argument("--values", nargs="+", default=["bits_per_dim"])
    parser.add_argument("--csv", type=Path, default=Path("optimizer.csv"))
    options = parser.parse_args()
    configure(project_folder())
    rows: list[dict[str, object]] = []
    for steps in options.steps:
        for seed in range(options.seeds):
            for dataset in options.datasets:
                for name in options.settings:
                    key = {"dataset": dataset.partition("=")[0], "steps": steps, "seed": seed}
                    row = best_validation(dataset, options.method, name, steps, seed)
                    values = {value: row[value] for value in options.values}
                    rows.append(key | {"settings": name} | values)
                    print(rows[-1], flush=True)
                    pd.DataFrame(rows).to_csv(options.csv, index=False)
    table = pd.DataFrame(rows).pivot(index=["dataset", "steps", "seed"], columns="settings")
    for key, of_key in table.groupby(["dataset", "steps"]):
        for value, name in ((v, n) for v in options.values for n in options.settings):
            of_name = of_key[value, name]
            change = of_name - of_key[value, options.settings[0]]
            print(*key, value, name, *map(written, (of_name, change)), sep=", ")


def written(values: pd.Series) -> str:
    mean = interval_over_seeds(values.to_list())
    return f"{mean['value']:.4g} [{mean['low']:.4g}, {mean['high']:.4g}]"


def best_validation(
    dataset: str, method: str, name: str, steps: int, seed: int
) -> dict[str, float]:
    """Train the first phase of a method, and return its best validation."""
    name_of_data, _, path = dataset.partition("=")
    data = {"data": {"path": str(Path(path).resolve())}} if path else {}
    params = {"dataset": name_of_data, "method": method, "seed": seed, **data}
    run = CachedRun(dataset, params, project_folder())
    if not run.catalog.exists("x_valid"):
        run.run("x_valid")
    phase = next(iter(run.settings.trainings.values()))
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
    return next(row for row in history["valid"] if row["step"] == history["best_step"])


if __name__ == "__main__":
    main()
