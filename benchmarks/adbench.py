"""Detection of anomalies in the tables of ADBench, compared with detectors of scikit-learn.

    python -m benchmarks.adbench FOLDER     # measure what is missing, print the page
    python -m benchmarks.adbench FOLDER --seeds 0 --sets wine pendigits

FOLDER has the npz files of ADBench (Han et al. 2022), with X and y (1: anomaly). Each set and seed
is a row of ``data/08_reporting/adbench.csv`` for each detector; existing rows are kept.

Protocols, those of Livernoche et al. (2023) except for the points below:

- ``semi``: half of the normal rows train; the others and all anomalies are the test.
- ``unsup``: all rows train, without their labels, and are scored.

Columns are standardized by the training rows. Sets of more rows are subsampled, to
10,000 (theirs: 50,000), with at least ten anomalies. Splits are random for each seed. Sets of fewer
than 1,000 rows are not enlarged by copies, which would put training rows into the test. A row is
not its own neighbor.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy
import torch
from sklearn.covariance import MinCovDet
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from submanifold.config.resolve import packaged_tables, resolve
from submanifold.config.schema import Experiment
from submanifold.evaluation.likelihood import log_prob
from submanifold.evaluation.scores import best_noise_scale
from submanifold.models import Model
from submanifold.training.phases import train_phase

RESULTS = Path("data/08_reporting/adbench.csv")
FIELDS = (
    "set",
    "protocol",
    "seed",
    "rows",
    "columns",
    "anomalies",
    "detector",
    "auroc",
    "ap",
    "alarms_1",
    "alarms_5",
    "normal",
    "seconds",
)
PROTOCOLS, ROWS = ("semi", "unsup"), 10_000
NEIGHBORS, MANY_NEIGHBORS = 5, 50  # more than in a cluster of anomalies in the training data
FEW, FOLDS = 1000, 3  # with fewer rows three models are trained, each on two thirds of them
FEWEST = 10  # anomalies in a subsample, or all that there are
HELD_OUT = 0.2
TRIM = 0.4  # of each batch, which the likelihood leaves out in the unsupervised protocol
FLOW, FLOW_KNN = "flow", "flow + kNN"
SCORE_BATCH, REFERENCE = 4096, 1000
LARGEST_MCD = 300  # columns of MCD, whose time is cubic; beyond, all rows are used


class Split(NamedTuple):
    """Standardized rows; ``same`` if the test rows are the training rows."""

    train: np.ndarray
    test: np.ndarray
    anomaly: np.ndarray
    same: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--sets", nargs="+", default=[""], help="parts of the names of files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure_all(options)
    print(page(pd.read_csv(RESULTS)))


def measure_all(options: argparse.Namespace) -> None:
    files = [
        path
        for path in options.folder.glob("*.npz")
        if any(part in path.stem for part in options.sets)
    ]
    files.sort(key=lambda path: np.load(path, allow_pickle=True)["X"].nbytes)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    if not RESULTS.exists():
        pd.DataFrame(columns=FIELDS).to_csv(RESULTS, index=False)
    known = pd.read_csv(RESULTS)
    done = set(zip(known["set"], known["protocol"], known["seed"], strict=True))
    for seed, file, protocol in product(options.seeds, files, PROTOCOLS):
        name = file.stem.partition("_")[2]
        if (name, protocol, seed) in done:
            continue
        with np.load(file, allow_pickle=True) as arrays:
            split = make_split(arrays["X"], arrays["y"], protocol, seed, ROWS)
        rows = pd.DataFrame(measure(split, seed)).assign(
            set=name,
            protocol=protocol,
            seed=seed,
            rows=len(split.train),
            columns=split.train.shape[1],
            anomalies=int(split.anomaly.sum()),
        )
        rows.reindex(columns=FIELDS).to_csv(RESULTS, mode="a", header=False, index=False)


def make_split(x: np.ndarray, y: np.ndarray, protocol: str, seed: int, rows: int) -> Split:
    chosen = split_rows(y.astype(bool), protocol, seed, rows)
    train, test = (x[part].astype(np.float64) for part in chosen)
    mean, std = train.mean(0), train.std(0)
    train, test = (
        ((part - mean) / np.where(std > 0, std, 1)).astype(np.float32) for part in (train, test)
    )
    return Split(train, test, y[chosen[1]].astype(bool), protocol == "unsup")


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


def measure(split: Split, seed: int) -> Iterator[dict[str, Any]]:
    for name, detector in DETECTORS.items():
        start = time.process_time()
        scores = detector(split, seed)
        yield evaluate(name, split, scores, None, time.process_time() - start)
    start = time.process_time()
    scores, p_values, held_out = detect_by_flow(split, seed)
    yield evaluate(FLOW, split, scores, p_values, time.process_time() - start)
    count = MANY_NEIGHBORS if split.same else NEIGHBORS
    some = split.train[np.random.default_rng(seed).permutation(len(split.train))[:REFERENCE]]
    distances = neighbors(Split(split.train, some, split.anomaly, True), count).mean(1)
    combined = standardize(scores, held_out)
    combined += standardize(neighbors(split, count).mean(1), distances)
    yield evaluate(FLOW_KNN, split, combined, None, time.process_time() - start)


def evaluate(
    name: str, split: Split, scores: np.ndarray, p_values: np.ndarray | None, seconds: float
) -> dict[str, Any]:
    scores = np.nan_to_num(scores, nan=1e30, posinf=1e30).clip(-1e30, 1e30)
    measures: dict[str, Any] = {
        "detector": name,
        "auroc": round(100 * roc_auc_score(split.anomaly, scores), 4),
        "ap": round(100 * average_precision_score(split.anomaly, scores), 4),
        "normal": int((~split.anomaly).sum()),
        "seconds": round(seconds, 2),
    }
    if p_values is not None:
        normal = p_values[~split.anomaly]
        measures |= {
            f"alarms_{100 * rate:.0f}": int((normal <= rate).sum()) for rate in (0.01, 0.05)
        }
    return measures


def standardize(scores: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Put scores on a common scale: the logarithm of the distance from the median in quartiles."""
    low, middle, high = np.quantile(training, [0.25, 0.5, 0.75])
    z = (scores - middle) / max(high - low, 1e-12)
    return np.sign(z) * np.log1p(abs(z))


def detect_by_flow(split: Split, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train the method of tables.

    Returns anomaly scores and p-values of the test rows, and the scores of held-out training rows.
    The p-values are those of cross-conformal prediction (Vovk 2015), or of one held-out part.
    """
    count = len(split.train)
    order = np.random.default_rng(seed).permutation(count)
    parts = [order[: int(HELD_OUT * count)]]
    if count < FEW:
        parts = [order[number::FOLDS] for number in range(FOLDS)]
    experiment = make_experiment(TRIM if split.same else 0.0, len(parts))
    models, scales = [], []
    for number, part in enumerate(parts):
        rest, held_out = split.train[np.setdiff1d(order, part)], split.train[part]
        with TemporaryDirectory() as folder:
            model, _ = train_phase(
                experiment.trainings["density"],
                experiment.model,
                None,
                rest,
                held_out,
                100 * seed + number,
                torch.device("cpu"),
                Path(folder),
                "density",
            )
        models.append(model.eval())
        scales.append(best_noise_scale(model, held_out))
    scale = float(np.mean(scales))
    scores = [score(model, split.test, scale) for model in models]
    normal = [
        np.sort(score(model, split.train[part], scale))
        for model, part in zip(models, parts, strict=True)
    ]
    above = sum(
        len(of_part) - np.searchsorted(of_part, of_test, "left")
        for of_part, of_test in zip(normal, scores, strict=True)
    )
    pooled = np.concatenate(normal)
    return np.mean(scores, axis=0), (1 + above) / (1 + len(pooled)), pooled


def make_experiment(trim: float, models: int) -> Experiment:
    """Resolve the method of tables, with the steps of one training for all models."""
    # any vectors: data and manifold do not matter for the training of the density
    changes: dict[str, Any] = {
        "dataset": "sphere",
        "method": "noise-conditional",
        "stage_1": {"dim": None},
        "density": {"likelihood": {"trim": trim}},
    }
    experiment = resolve(packaged_tables() | changes)
    phase = experiment.trainings["density"]
    training = phase.training.model_copy(update={"steps": phase.training.steps // models})
    phase = phase.model_copy(update={"training": training})
    return experiment.model_copy(update={"phases": {"density": phase}})


@torch.no_grad()
def score(model: Model, x: np.ndarray, scale: float) -> np.ndarray:
    """Return minus the log-density at a noise scale, (N,)."""
    parts = torch.from_numpy(x).split(SCORE_BATCH)
    scores = [-log_prob(model, part, noise_scale=scale) for part in parts]
    return np.nan_to_num(torch.cat(scores).double().numpy(), nan=1e30)


def neighbors(split: Split, count: int) -> np.ndarray:
    """Return distances to the nearest other training rows, (N, count)."""
    count = min(count, len(split.train) - 1)
    algorithm = "kd_tree" if split.train.shape[1] < 12 else "brute"
    fitted = NearestNeighbors(n_neighbors=count + split.same, algorithm=algorithm).fit(split.train)
    return fitted.kneighbors(split.test)[0][:, int(split.same) :]


def local_outlier_factor(split: Split, seed: int) -> np.ndarray:
    """Local outlier factor of 20 neighbors."""
    if split.same:
        return -LocalOutlierFactor().fit(split.train).negative_outlier_factor_
    return -LocalOutlierFactor(novelty=True).fit(split.train).score_samples(split.test)


def principal_axes(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return singular values and axes of the training rows, without those that are nearly zero."""
    _, values, axes = np.linalg.svd(split.train.astype(np.float64), full_matrices=False)
    kept = values > 1e-6 * values[0]
    return values[kept], axes[kept]


def principal_components(split: Split, seed: int) -> np.ndarray:
    """Sum of distances to the principal axes, each divided by its explained variance (PyOD)."""
    values, axes = principal_axes(split)
    ratios = values**2 / (values**2).sum()
    return (scipy.spatial.distance.cdist(split.test, axes) / ratios).sum(1)


def mahalanobis(split: Split, seed: int) -> np.ndarray:
    """Squared Mahalanobis distance, within the span of the training rows."""
    values, axes = principal_axes(split)
    return ((split.test @ (axes / values[:, None]).T) ** 2).sum(1)


def robust_covariance(split: Split, seed: int) -> np.ndarray:
    """Mahalanobis distance of the minimum covariance determinant, or of all rows if it fails."""
    if split.train.shape[1] > LARGEST_MCD:
        return mahalanobis(split, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return MinCovDet(random_state=seed).fit(split.train).mahalanobis(split.test)
        except ValueError:
            return mahalanobis(split, seed)


def tails(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return -log of both empirical tails of each value, and of those towards the skewness.

    As in PyOD, the test rows belong to the sample.
    """
    pool = split.train if split.same else np.concatenate([split.train, split.test])
    ordered = np.sort(pool, axis=0).T
    counts = [
        [np.searchsorted(*values, side) for values in zip(ordered, split.test.T, strict=True)]
        for side in ("right", "left")
    ]
    low, high = np.array(counts).swapaxes(1, 2) / len(pool)
    low, high = (-np.log(tail.clip(0.5 / len(pool))) for tail in (low, 1 - high))
    skewness = np.nan_to_num(scipy.stats.skew(pool))
    return low, high, np.where(skewness < 0, low, np.where(skewness > 0, high, low + high))


def ecod(split: Split, seed: int) -> np.ndarray:
    """Empirical cumulative distributions (Li et al. 2022)."""
    low, high, skewed = tails(split)
    return np.max([low.sum(1), high.sum(1), skewed.sum(1)], axis=0)


def copod(split: Split, seed: int) -> np.ndarray:
    """Copula of empirical tails (Li et al. 2020)."""
    low, high, skewed = tails(split)
    return np.maximum((low + high) / 2, skewed).sum(1)


Detector = Callable[[Split, int], np.ndarray]
DETECTORS: dict[str, Detector] = {
    "kNN": lambda split, seed: neighbors(split, NEIGHBORS)[:, -1],
    "kNN, mean of 5": lambda split, seed: neighbors(split, NEIGHBORS).mean(1),
    "kNN, mean of 50": lambda split, seed: neighbors(split, MANY_NEIGHBORS).mean(1),
    "LOF": local_outlier_factor,
    "isolation forest": lambda split, seed: (
        -IsolationForest(random_state=seed).fit(split.train).score_samples(split.test)
    ),
    "PCA": principal_components,
    "Mahalanobis": mahalanobis,
    "MCD": robust_covariance,
    "ECOD": ecod,
    "COPOD": copod,
}


def page(results: pd.DataFrame) -> str:
    parts = []
    for protocol, rows in results.groupby("protocol"):
        parts += [f"### Protocol {protocol}", summary(rows), alarms(rows), by_set(rows)]
    return "\n\n".join(parts)


def summary(rows: pd.DataFrame) -> str:
    """Compare the detectors: means over sets and seeds, ranks, wins over kNN, seconds."""
    auroc = rows.groupby(["set", "detector"])["auroc"].mean().unstack()
    by_seed = rows.groupby(["seed", "detector"])["auroc"].mean().unstack()
    own = rows.groupby("detector")
    table = pd.DataFrame(
        {
            "AUROC": auroc.mean(),
            "minus kNN": (auroc.sub(auroc["kNN"], axis=0)).mean(),
            "lowest seed": by_seed.sub(by_seed["kNN"], axis=0).min(),
            "highest seed": by_seed.sub(by_seed["kNN"], axis=0).max(),
            "sets above kNN": (auroc.sub(auroc["kNN"], axis=0) > 0).sum(),
            "mean rank": auroc.rank(axis=1, ascending=False).mean(),
            "average precision": own["ap"].mean(),
            "median seconds": own["seconds"].median(),
        }
    ).sort_values("AUROC", ascending=False)
    return table.to_markdown(floatfmt=["", *[".2f"] * 4, ".0f", ".1f", ".2f", ".1f"])


def alarms(rows: pd.DataFrame) -> str:
    """Compare the flow's rates of false alarms with the promised ones.

    With m held-out rows the number of alarms is beta-binomial; the intervals have 99% of it.
    """
    own = rows[rows["detector"] == FLOW]
    held_out = np.where(own["rows"] < FEW, own["rows"], (HELD_OUT * own["rows"]).astype(int))
    lines = []
    for rate, column in ((0.01, "alarms_1"), (0.05, "alarms_5")):
        inside = 0
        for count, normal, size in zip(own[column], own["normal"], held_out, strict=True):
            first = int(rate * (size + 1))
            law = scipy.stats.betabinom(int(normal), max(first, 1e-9), size + 1 - first)
            inside += min(law.cdf(count), law.sf(count - 1)) >= 0.005
        observed = 100 * (own[column] / own["normal"]).mean()
        pooled = 100 * own[column].sum() / own["normal"].sum()
        lines.append(
            f"- At {rate:.0%}: {observed:.2f}% of the normal test rows in the mean over sets and "
            f"seeds, {pooled:.2f}% of all; within the 99% interval in {inside} of {len(own)}."
        )
    return "\n".join(lines)


def by_set(rows: pd.DataFrame) -> str:
    shown = [FLOW, FLOW_KNN, "kNN", "LOF", "isolation forest", "PCA", "MCD", "ECOD", "COPOD"]
    auroc = rows.groupby(["set", "detector"])["auroc"].mean().unstack()[shown]
    sizes = rows.groupby("set")[["rows", "columns"]].first()
    return sizes.join(auroc).to_markdown(floatfmt=("", ".0f", ".0f", *[".1f"] * len(shown)))


if __name__ == "__main__":
    main()
