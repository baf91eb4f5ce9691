"""Density of few rows: the default estimator and a Gaussian mixture that validation rows choose.

    python -m benchmarks.small_tables --data=FOLDER

The folder has the tables Wilt and magic.gamma of ADBench as npz files. Prints a table of
docs/evidence/tables.md. Measurements are kept in data/small_tables/, so that an interrupted command
resumes. Durations are processor time of one thread.
"""

import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.mixture import GaussianMixture

from benchmarks.results import kept, markdown, over_seeds
from benchmarks.tables import COMPONENTS, continuous_columns
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.metrics import format_interval
from submanifold.sklearn import HELD_OUT, ManifoldFlow

RESULTS = Path("data/small_tables")
INSTALLED = {"breast_cancer": load_breast_cancer, "wine": load_wine}
FILES = {"wilt": "44_Wilt.npz", "magic": "22_magic.gamma.npz"}
KINDS, RIDGES = ("full", "tied", "diag"), (1e-6, 1e-3, 1e-2, 1e-1)


def split_rows(table: str, data: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return three quarters of the rows and the test rows, in units of the former."""
    if table in INSTALLED:
        x = INSTALLED[table]().data
    else:
        with np.load(data / FILES[table], allow_pickle=True) as arrays:
            x = arrays["X"]
    rng = np.random.default_rng(seed)
    x = rng.permutation(continuous_columns(x, rng))
    train, test = np.split(x, [int(0.75 * len(x))])
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


def gaussian_mixture(x: np.ndarray) -> GaussianMixture:
    """Fit mixtures to nine tenths of the rows; the others choose one, which is fitted to all."""
    train, valid = np.split(x, [int((1 - HELD_OUT) * len(x))])
    mixtures = [
        GaussianMixture(count, covariance_type=kind, reg_covar=ridge, random_state=0)
        for count, kind, ridge in product(COMPONENTS, KINDS, RIDGES)
        if count <= len(train) // 10
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 100 iterations may not suffice
        return max(mixtures, key=lambda mixture: mixture.fit(train).score(valid)).fit(x)


def measure(table: str, data: Path, seed: int) -> dict[str, Any]:
    train, test = split_rows(table, data, seed)
    started = time.process_time()
    flow = ManifoldFlow(random_state=seed).fit(train)
    seconds = time.process_time() - started
    return {
        "rows": len(train),
        "columns": train.shape[1],
        "seconds": seconds,
        "noise_scale": flow.noise_scale_,
        "flow": flow.score_samples(test).tolist(),
        "Gaussian mixture": gaussian_mixture(train).score_samples(test).tolist(),
    }


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--table", "tables", multiple=True, default=[*INSTALLED, *FILES])
def main(data: Path, seeds: int, tables: tuple[str, ...]) -> None:
    """Measure the mean log-density of test rows on four tables."""
    rows = []
    for table in tables:
        runs = []
        for seed in range(seeds):
            path = RESULTS / f"{table}-{seed}.json"
            runs.append(kept(path, partial(measure, table, data, seed)))
            click.echo(f"{table} {seed}: {runs[-1]['seconds']:.0f} s", err=True)
        differences = [np.subtract(run["flow"], run["Gaussian mixture"]) for run in runs]
        names = "flow", "Gaussian mixture"
        rows.append(
            {
                "table": table,
                "training rows": f"{runs[0]['rows']:,}",
                "columns": runs[0]["columns"],
                **{n: over_seeds([float(np.mean(r[n])) for r in runs], ".2f") for n in names},
                "flow minus mixture": format_interval(
                    mean_interval(np.concatenate(differences)), "+.2f"
                ),
                "seconds": f"{np.mean([run['seconds'] for run in runs]):.0f}",
            }
        )
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
