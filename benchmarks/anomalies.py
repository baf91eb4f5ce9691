"""Detection of anomalies in tables by the estimator, compared with detectors of scikit-learn.

    python -m benchmarks.anomalies FOLDER     # measure what is missing, print the summary
    python -m benchmarks.anomalies FOLDER --seeds 0 1 --tables wine pendigits
    python -m benchmarks.anomalies FOLDER --few 200 --processes 2

FOLDER has the npz files of ADBench (Han et al. 2022), X and y (1: anomaly), or of OvRBench (Ding,
Klüttermann et al. 2026), train, test and test_labels. Each table, protocol and seed is a file in
``data/08_reporting/anomalies/``; an interrupted command resumes.

Tables of ADBench have two protocols, like those of Livernoche et al. (2023):

- ``semi``: half of the normal rows train; the others and all anomalies are the test.
- ``unsup``: all rows train, without their labels, and are scored.

Those of OvRBench have their own split. The estimator is ``ManifoldFlow()``; the others get columns
that are standardized by the training rows. At most 10,000 rows of a table are used, with at least
ten anomalies; splits are random for each seed. A row is not its own neighbor.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from benchmarks.results import kept, markdown
from submanifold.evaluation.calibration import MIN_IMAGES
from submanifold.evaluation.intervals import mean_interval
from submanifold.sklearn import HELD_OUT, MANY_ROWS, ManifoldFlow

RESULTS = Path("data/08_reporting/anomalies")
ROWS = 10_000
NEIGHBORS = 5
FEWEST = 10  # anomalies in a subsample, or all that there are
TRAINING_ROWS, COLUMNS = (100, 4000), (3, 60)  # of tables of OvRBench
FLOW, BASELINE = "ManifoldFlow()", "kNN, mean of 5"
RATES = 0.01, 0.05
LARGEST = 1e30


class Split(NamedTuple):
    """Training and test rows; ``same`` if the test rows are the training rows."""

    train: np.ndarray
    test: np.ndarray
    anomaly: np.ndarray
    same: bool = False

    @property
    def standardized(self) -> "Split":
        mean, std = self.train.mean(0), self.train.std(0)
        train, test = ((rows - mean) / np.where(std > 0, std, 1) for rows in self[:2])
        return self._replace(train=train, test=test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tables", nargs="+", default=[""], help="parts of the names of files")
    parser.add_argument("--few", type=int, help="this many tables, drawn at random with seed 0")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    files = sorted(
        path
        for path in options.folder.glob("*.npz")
        if any(part in path.stem for part in options.tables) and protocols(path)
    )
    if options.few is not None:
        files = [files[n] for n in np.random.default_rng(0).permutation(len(files))[: options.few]]
    jobs = [
        (path, protocol, seed)
        for seed, path in product(options.seeds, files)
        for protocol in protocols(path)
    ]
    with get_context("spawn").Pool(options.processes, torch.set_num_threads, [1]) as pool:
        of_jobs = pool.starmap(measure_once, jobs, chunksize=1)
    print(page(pd.DataFrame(row for rows in of_jobs for row in rows)))


def protocols(path: Path) -> Sequence[str]:
    """Return the protocols of a table, none if it is not measured."""
    with np.load(path, allow_pickle=True) as arrays:
        if "X" in arrays:
            return "semi", "unsup"
        counts = zip(arrays["train"].shape, (TRAINING_ROWS, COLUMNS), strict=True)
    return ("own",) if all(low <= count <= high for count, (low, high) in counts) else ()


def measure_once(path: Path, protocol: str, seed: int) -> list[dict[str, Any]]:
    name = f"{path.stem}-{protocol}-{seed}".replace("/", "-")
    return kept(RESULTS / f"{name}.json", partial(measure, path, protocol, seed))


def measure(path: Path, protocol: str, seed: int) -> list[dict[str, Any]]:
    with np.load(path, allow_pickle=True) as arrays:
        if protocol == "own":
            split = Split(arrays["train"], arrays["test"], arrays["test_labels"].astype(bool))
        else:
            split = make_split(arrays["X"], arrays["y"], protocol, seed, ROWS)
    about = {
        "table": path.stem,
        "protocol": protocol,
        "seed": seed,
        "rows": len(split.train),
        "columns": split.train.shape[1],
        "anomalies": int(split.anomaly.sum()),
        "normal": int((~split.anomaly).sum()),
    }
    results = []
    for detector, detect in DETECTORS.items():
        start = time.process_time()
        scores, p_values = detect(split, seed)
        measured = evaluate(split.anomaly, scores, p_values)
        measured["seconds"] = round(time.process_time() - start, 2)
        results.append({**about, "detector": detector, **measured})
    return results


def make_split(x: np.ndarray, y: np.ndarray, protocol: str, seed: int, rows: int) -> Split:
    train, test = split_rows(y.astype(bool), protocol, seed, rows)
    x = x.astype(np.float64)
    return Split(x[train], x[test], y[test].astype(bool), protocol == "unsup")


def split_rows(y: np.ndarray, protocol: str, seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the numbers of the rows of training and test, in random order."""
    order = np.random.default_rng([seed, 17]).permutation(len(y))
    chosen, anomalies = order[:rows], order[y[order]][:FEWEST]
    if y[chosen].sum() < len(anomalies):
        normal = chosen[~y[chosen]]
        chosen = np.concatenate([anomalies, normal[: rows - len(anomalies)]])
    if protocol == "unsup":
        return chosen, chosen
    normal = chosen[~y[chosen]]
    train = normal[: round(len(normal) / 2)]
    return train, chosen[~np.isin(chosen, train)]


def evaluate(
    anomaly: np.ndarray, scores: np.ndarray, p_values: np.ndarray | None
) -> dict[str, Any]:
    scores = np.nan_to_num(scores, nan=LARGEST).clip(-LARGEST, LARGEST)
    measured: dict[str, Any] = {
        "auroc": 100 * roc_auc_score(anomaly, scores),
        "ap": 100 * average_precision_score(anomaly, scores),
    }
    if p_values is not None:
        flagged = {f"alarms {rate:.0%}": int((p_values[~anomaly] <= rate).sum()) for rate in RATES}
        measured |= flagged
    return measured


# ---- detectors: anomaly scores of the test rows, and p-values if there are any

Detection = tuple[np.ndarray, np.ndarray | None]


def by_flow(split: Split, seed: int) -> Detection:
    flow = ManifoldFlow(random_state=seed, device="cpu", alpha=0.2).fit(split.train)
    return -flow.decision_function(split.test), flow.p_values(split.test)


def by_neighbors(split: Split, seed: int) -> Detection:
    train, test, _, same = split.standardized
    count = min(NEIGHBORS, len(train) - 1) + same
    fitted = NearestNeighbors(n_neighbors=count).fit(train)
    return fitted.kneighbors(test)[0][:, int(same) :].mean(1), None


def local_outlier_factor(split: Split, seed: int) -> Detection:
    train, test, _, same = split.standardized
    if same:
        return -LocalOutlierFactor().fit(train).negative_outlier_factor_, None
    return -LocalOutlierFactor(novelty=True).fit(train).score_samples(test), None


def isolation_forest(split: Split, seed: int) -> Detection:
    return -IsolationForest(random_state=seed).fit(split.train).score_samples(split.test), None


def mahalanobis(split: Split, seed: int) -> Detection:
    train, test, *_ = split.standardized
    return EmpiricalCovariance().fit(train).mahalanobis(test), None


DETECTORS: dict[str, Callable[[Split, int], Detection]] = {
    FLOW: by_flow,
    BASELINE: by_neighbors,
    "LOF": local_outlier_factor,
    "isolation forest": isolation_forest,
    "Mahalanobis": mahalanobis,
}


# ---- summary


def page(results: pd.DataFrame) -> str:
    parts = []
    for protocol, rows in results.groupby("protocol"):
        tables = rows["table"].nunique()
        parts += [f"### {protocol}: {tables} tables", summary(rows), alarms(rows)]
    return "\n\n".join(parts)


def summary(rows: pd.DataFrame) -> str:
    """Compare the detectors: means over tables of the means over seeds."""
    of_tables = rows.pivot_table("auroc", "table", "detector")
    means = rows.groupby("detector")[["auroc", "ap"]].mean()
    seconds = rows.groupby("detector")["seconds"].median()
    lines = []
    for detector in means["auroc"].sort_values(ascending=False).index:
        difference = of_tables[detector] - of_tables[BASELINE]
        line = {"detector": detector, "AUROC": f"{means['auroc'][detector]:.2f}"}
        if detector == BASELINE:
            line |= {f"minus {BASELINE}": "0", "tables ahead": "–"}
        else:
            text = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**mean_interval(difference))
            line |= {f"minus {BASELINE}": text, "tables ahead": f"{(difference > 0).mean():.0%}"}
        line["average precision"] = f"{means['ap'][detector]:.2f}"
        line["processor seconds (median)"] = f"{seconds[detector]:.1f}"
        lines.append(line)
    return markdown(lines)


def alarms(rows: pd.DataFrame) -> str:
    """Compare rates of false alarms with the promised ones.

    With m calibration rows the number of alarms is beta-binomial; the intervals have 99% of it.
    """
    own = rows[(rows["detector"] == FLOW) & (rows["rows"] >= MIN_IMAGES)]
    lines = []
    for rate in RATES:
        inside, observed = 0, own[f"alarms {rate:.0%}"] / own["normal"]
        for count, normal, size in zip(
            own[f"alarms {rate:.0%}"], own["normal"], own["rows"], strict=True
        ):
            calibrated = size if size < MANY_ROWS else round(HELD_OUT * size)
            first = int(rate * (calibrated + 1))
            law = scipy.stats.betabinom(int(normal), max(first, 1e-9), calibrated + 1 - first)
            inside += min(law.cdf(count), law.sf(count - 1)) >= 0.005
        lines.append(
            f"- At {rate:.0%}: {observed.mean():.2%} of the normal test rows are flagged in the "
            f"mean over tables (standard deviation {observed.std():.2%}); within the 99% interval "
            f"on {inside} of {len(own)}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
