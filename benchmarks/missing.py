"""Detection of anomalies in the tables of ADBench of which cells are removed at random.

    python -m benchmarks.missing FOLDER
    python -m benchmarks.missing --gaussian 40 100  # error of the density, by columns

FOLDER and the protocol ``semi`` are those of :mod:`benchmarks.anomalies`. Compared are the
estimator with missing values, the estimator on medians, and nearest neighbors on medians. Each set,
rate and seed is a file in ``data/08_reporting/missing/``; an interrupted command resumes.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from benchmarks.anomalies import Split, by_neighbors, split_rows
from benchmarks.results import kept
from submanifold.sklearn import ManifoldFlow

RESULTS = Path("data/08_reporting/missing")
RATES, ROWS, FEWEST = (0.1, 0.3), 5000, 200  # with fewer rows, columns may have no missing cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--gaussian", type=int, nargs="+", default=[], metavar="COLUMNS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for columns in options.gaussian:
        print(f"{columns} columns: {gaussian_error(columns):.2f} nats below the exact density")
    if options.folder is None:
        return
    files = sorted(options.folder.glob("*.npz"), key=lambda path: path.stat().st_size)
    rows = pd.DataFrame(
        row
        for seed, file, rate in product(options.seeds, files, RATES)
        for row in kept(
            RESULTS / f"{file.stem}-{rate}-{seed}.json", partial(measure, file, rate, seed)
        )
    )
    means = rows.groupby("rate").mean(numeric_only=True).drop(columns="seed")
    print(means.assign(count=rows.groupby("rate").size()).round(2).to_markdown())


def measure(file: Path, rate: float, seed: int) -> list[dict[str, float]]:
    """Return AUROC and false alarms at 5% in percent, also of rows with many missing cells."""
    with np.load(file, allow_pickle=True) as arrays:
        x, y = arrays["X"].astype(float), arrays["y"].astype(bool)
    train, test = split_rows(y, "semi", seed, ROWS)
    if len(train) < FEWEST:
        return []
    is_missing, is_anomaly = np.random.default_rng([seed, 5]).random(x.shape) < rate, y[test]
    x = np.where(is_missing, np.nan, x)
    filled = np.where(is_missing, np.nanmedian(x[train], axis=0), x)
    flow, of_medians = (ManifoldFlow(random_state=seed).fit(rows[train]) for rows in (x, filled))
    near, _ = by_neighbors(Split(filled[train], filled[test], is_anomaly), seed)
    alarms = flow.p_values(x[test])[~is_anomaly] <= 0.05
    counts = is_missing[test].sum(1)[~is_anomaly]
    scores = {
        "missing": -flow.decision_function(x[test]),
        "medians": -of_medians.decision_function(filled[test]),
        "kNN": near,
    }
    aurocs = {name: 100 * roc_auc_score(is_anomaly, values) for name, values in scores.items()}
    of_many = alarms[counts > np.median(counts)]
    about = {
        "set": file.stem,
        "rate": rate,
        "seed": seed,
        "rows": len(train),
        "columns": x.shape[1],
    }
    rates = {"alarms": 100 * alarms.mean(), "alarms_missing": 100 * of_many.mean()}
    return [about | aurocs | rates]


def gaussian_error(columns: int) -> float:
    """Return the error of the mean log-density, nats, of a Gaussian with 30% of cells missing."""
    rng, places = np.random.default_rng(0), np.arange(columns)
    covariance = 0.6 ** abs(np.subtract.outer(places, places))
    x = rng.multivariate_normal(np.zeros(columns), covariance, 4000)
    x[rng.random(x.shape) < 0.3] = np.nan
    train, test = x[:3000], x[3000:]
    exact = [
        multivariate_normal(cov=covariance[np.ix_(known, known)]).logpdf(row[known])
        for row, known in zip(test, ~np.isnan(test), strict=True)
    ]
    return float(np.mean(exact)) - ManifoldFlow(random_state=0).fit(train).score(test)


if __name__ == "__main__":
    main()
