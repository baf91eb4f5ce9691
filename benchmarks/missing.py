"""Detection of anomalies in the tables of ADBench of which cells are removed at random.

    python -m benchmarks.missing FOLDER
    python -m benchmarks.missing --gaussian 40 100  # error of the density, by columns

FOLDER and the protocol ``semi`` are those of :mod:`benchmarks.anomalies`. Compared are the
estimator with missing values, the estimator on medians, and nearest neighbors on medians. Each set,
rate and seed is a row of ``data/08_reporting/missing.csv``; existing rows are kept.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from benchmarks.anomalies import Split, by_neighbors, split_rows
from submanifold.sklearn import ManifoldFlow

RESULTS = Path("data/08_reporting/missing.csv")
RATES, ROWS, FEWEST = (0.1, 0.3), 5000, 200  # with fewer rows, columns may have no missing cell
FIELDS = (
    "set",
    "rate",
    "seed",
    "rows",
    "columns",
    "missing",
    "medians",
    "kNN",
    "alarms",
    "alarms_missing",
)


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
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    if not RESULTS.exists():
        pd.DataFrame(columns=FIELDS).to_csv(RESULTS, index=False)
    known = pd.read_csv(RESULTS)
    done = set(zip(known["set"], known["rate"], known["seed"], strict=True))
    files = sorted(options.folder.glob("*.npz"), key=lambda path: path.stat().st_size)
    for seed, file, rate in product(options.seeds, files, RATES):
        name = file.stem.partition("_")[2]
        with np.load(file, allow_pickle=True) as arrays:
            x, y = arrays["X"].astype(float), arrays["y"].astype(bool)
        train, test = split_rows(y, "semi", seed, ROWS)
        if (name, rate, seed) in done or len(train) < FEWEST:
            continue
        row = {"set": name, "rate": rate, "seed": seed, "rows": len(train), "columns": x.shape[1]}
        row |= measure(x, y[test], train, test, rate, seed)
        pd.DataFrame([row])[[*FIELDS]].to_csv(RESULTS, mode="a", header=False, index=False)
    results = pd.read_csv(RESULTS)
    means = results.groupby("rate").mean(numeric_only=True).drop(columns="seed")
    print(means.assign(count=results.groupby("rate").size()).round(2).to_markdown())


def measure(
    x: np.ndarray,
    is_anomaly: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    rate: float,
    seed: int,
) -> dict[str, float]:
    """Return AUROC and false alarms at 5% in percent, also of rows with many missing cells."""
    is_missing = np.random.default_rng([seed, 5]).random(x.shape) < rate
    x = np.where(is_missing, np.nan, x)
    filled = np.where(is_missing, np.nanmedian(x[train], axis=0), x)
    flow, of_medians = (ManifoldFlow(random_state=seed).fit(rows[train]) for rows in (x, filled))
    near, _ = by_neighbors(Split(filled[train], filled[test], is_anomaly), seed)
    p_values = flow.p_values(x[test])
    alarms = p_values[~is_anomaly] <= 0.05
    counts = is_missing[test].sum(1)[~is_anomaly]
    scores = {
        "missing": -flow.decision_function(x[test]),
        "medians": -of_medians.decision_function(filled[test]),
        "kNN": near,
    }
    of_many = alarms[counts > np.median(counts)]
    return {
        name: round(100 * roc_auc_score(is_anomaly, values), 2) for name, values in scores.items()
    } | {
        "alarms": round(100 * alarms.mean(), 2),
        "alarms_missing": round(100 * of_many.mean(), 2),
    }


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
