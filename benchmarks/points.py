"""Density of points: divergence of `nested` and `density-first` from the known density.

    python -m benchmarks.points --steps=600

Prints a value for each seed. Measurements are kept in data/points/, so that an interrupted command
resumes.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from benchmarks.results import kept, markdown
from submanifold.config.resolve import packaged_tables, resolve
from submanifold.training import train_phases

RESULTS = Path("data/points")
DATASETS = "circle", "von_mises_circle", "sphere", "vmf_sphere", "paraboloid"
METHODS = "nested", "density-first"


def measure(dataset: str, method: str, steps: int, seed: int) -> dict[str, Any]:
    chosen = {"dataset": dataset, "method": method, "training": {"steps": steps}}
    experiment = resolve(packaged_tables() | chosen)
    data: Any = experiment.data
    draws = data.counts.train, data.counts.valid, data.counts.test
    train, valid, test = (
        data.manifold.sample(count, np.random.default_rng([seed, split])).astype(np.float32)
        for split, count in enumerate(draws)
    )
    with TemporaryDirectory() as folder:
        arguments = seed, torch.device("cpu"), folder
        model = train_phases(experiment.phases, experiment.model, train, valid, *arguments)
    x = torch.from_numpy(test).double()
    with torch.no_grad():
        log_prob = model.double().log_prob(x).numpy()
        error = (x - model.encoder_projection(x)).square().mean().item()
    divergence = (data.manifold.log_prob(x.numpy()) - log_prob).mean().item()
    return {"divergence": divergence, "squared error": error}


@click.command()
@click.option("--steps", default=600, show_default=True, help="Of each phase.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--dataset", "datasets", multiple=True, default=DATASETS)
@click.option("--method", "methods", multiple=True, default=METHODS)
def main(steps: int, seeds: int, datasets: tuple[str, ...], methods: tuple[str, ...]) -> None:
    """Measure the divergence, and the squared error of encoder projections, for each seed."""
    rows = []
    for dataset in datasets:
        for method in methods:
            runs = []
            for seed in range(seeds):
                path = RESULTS / f"{dataset}-{method}-{steps}-{seed}.json"
                runs.append(kept(path, partial(measure, dataset, method, steps, seed)))
            values = {n: ", ".join(f"{run[n]:.3f}" for run in runs) for n in runs[0]}
            rows.append({"points": dataset, "method": method, "steps": steps, **values})
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
