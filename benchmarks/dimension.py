"""Intrinsic dimensions of manifolds with a known one, by the estimates of the dimension page.

    pip install 'submanifold[dimension]'
    python -m benchmarks.dimension

Trains the default method of tables on 2,500 points of each of the 24 manifolds of scikit-dimension,
and prints the table of docs/evidence/tables.md. Estimates are kept in data/dimension/.
"""

from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from kedro.framework.startup import bootstrap_project
from skdim.datasets import BenchmarkManifolds

from benchmarks.results import kept, markdown, over_seeds
from benchmarks.tables import train_flow
from submanifold.evaluation.dimension import (
    SPECTRUM,
    intrinsic_dimensions,
    spectrum_dimension,
)

POINTS, HIGH = 2500, 9  # dimensions from which on estimates by distances fail


@click.command(help=__doc__)
@click.option("--seeds", default=1, show_default=True)
def main(seeds: int) -> None:
    bootstrap_project(Path.cwd())
    torch.set_num_threads(1)
    rows = []
    for seed in range(seeds):
        manifolds = BenchmarkManifolds(random_state=seed)
        truth = manifolds.truth["Intrinsic Dimension"]
        for name, points in manifolds.generate(n=POINTS).items():
            path = Path("data/dimension") / f"{name}-{seed}.json"
            estimates = kept(path, partial(estimate, points, seed))
            values = {key: interval["value"] for key, interval in estimates.items()}
            rows.append({"manifold": name, "seed": seed, "dimension": int(truth[name]), **values})
    print(table(pd.DataFrame(rows)))


def estimate(points: np.ndarray, seed: int) -> dict[str, Any]:
    """Estimate the dimension of points (N, D) by distances and by a trained model's spectrum."""
    x = np.random.default_rng(seed).permutation(points)
    x = ((x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)).astype(np.float32)
    train, valid, test = np.split(x, [int(0.8 * len(x)), int(0.9 * len(x))])
    model, _ = train_flow((train, valid, test), seed, None)
    # estimators divide by 256, which does not change ratios of distances
    estimates = {**intrinsic_dimensions(train), SPECTRUM: spectrum_dimension(model, test)}
    print(len(points[0]), {name: round(row["value"], 1) for name, row in estimates.items()})
    return estimates


def table(estimates: pd.DataFrame) -> str:
    """Write the mean estimates of each manifold, and the mean relative errors."""
    names = list(estimates.columns[3:])
    means = estimates.groupby(["manifold", "dimension"], sort=False)[names].mean()
    rows = means.round(1).astype(str).reset_index().to_dict("records")
    errors = (estimates[names].div(estimates["dimension"], axis=0) - 1).abs()
    is_high = estimates["dimension"] >= HIGH
    parts = {"all": is_high | ~is_high, f"{HIGH} or more dimensions": is_high, "fewer": ~is_high}
    for part, chosen in parts.items():
        by_seed = errors[chosen].groupby(estimates["seed"]).mean()
        cells = {name: over_seeds(by_seed[name].tolist(), ".3f") for name in names}
        rows.append({"manifold": f"mean relative error, {part}", "dimension": "", **cells})
    return markdown(rows)


if __name__ == "__main__":
    main()
