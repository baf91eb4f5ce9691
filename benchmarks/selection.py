"""Selection of anomalies with a false discovery rate, in the tables of ADBench.

    pip install nonconform==2.0.0
    python -m benchmarks.selection FOLDER     # measures what is missing

Prints the tables of docs/evidence/selection.md. Splits are those of :mod:`benchmarks.anomalies`.
"""

import argparse
import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nonconform import ConformalDetector, Empirical, Split
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from benchmarks.anomalies import NEIGHBORS, ROWS, make_split, split_rows
from benchmarks.results import kept, markdown, with_interval
from submanifold.evaluation.calibration import MIN_IMAGES
from submanifold.evaluation.discoveries import select
from submanifold.evaluation.intervals import mean_interval
from submanifold.sklearn import HELD_OUT, ManifoldFlow

FOLDER = Path("data/08_reporting/selection")
LEVELS, MIXTURES, REPEATS = (0.05, 0.1, 0.2), ("all", 0.05, 0.1), 20


class DensityFlow(ManifoldFlow):
    """Without the phases for the manifold, which take most of the time."""

    def _method(self, *args: Any) -> Any:
        model, phases = super()._method(*args)
        return model, {"density": phases["density"]}


class NeighborDistance(BaseEstimator):
    def fit(self, X: np.ndarray, y: Any = None) -> "NeighborDistance":  # noqa: N803
        self.index_ = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(X))).fit(X)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        return self.index_.kneighbors(X)[0][:, -1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="of ManifoldFlow, by default those of its method")
    options = parser.parse_args()
    rows = []
    for seed, file in product(options.seeds, sorted(options.folder.glob("*.npz"))):
        path = FOLDER / f"{file.stem}-{seed}.json"
        rows += kept(path, partial(measure, file, seed, options.steps))
    results = pd.DataFrame(rows)
    print(table(results), table(results[results["tied"] >= 0.1]), sep="\n")


def measure(file: Path, seed: int, steps: int | None) -> list[dict[str, Any]]:
    with np.load(file, allow_pickle=True) as arrays:
        x, y, rows = arrays["X"], arrays["y"] == 1, []
    train, test = split_rows(y, "semi", seed, ROWS)
    split = make_split(x, y, "semi", seed, ROWS).standardized
    count = max(round(HELD_OUT * len(train)), MIN_IMAGES)
    _, copies, counts = np.unique(x[test], axis=0, return_inverse=True, return_counts=True)
    tied = float((counts[copies] > 1).mean())
    flow = DensityFlow(steps=steps, random_state=seed, device="cpu").fit(x[train])
    p_values = {"ManifoldFlow": flow.p_values(x[test])}
    for build, ties in product((IsolationForest, NeighborDistance), ("classical", "randomized")):
        detector = ConformalDetector(build(), Split(count), Empirical(tie_break=ties), seed=seed)
        detector.fit(split.train)
        p_values[f"{build.__name__}, {ties}"] = detector.compute_p_values(split.test)
    for mixture, level in product(MIXTURES, LEVELS):
        rng = np.random.default_rng(seed)
        mixed = [mix(y[test], mixture, rng) for _ in range(1 if mixture == "all" else REPEATS)]
        size, anomalies = len(mixed[0]), int(y[test[mixed[0]]].sum())
        facts = {
            "set": file.stem.partition("_")[2],
            "seed": seed,
            "tied": tied,
            "mixture": mixture,
            "level": level,
            "calibrated": count,
            "anomalies": anomalies,
            "needed": math.ceil(size / (level * (count + 1))),
        }
        for method, p in p_values.items():
            pairs = [(select(p[part], level), y[test[part]]) for part in mixed]
            wrong = [(chosen & ~truth).sum() / max(1, chosen.sum()) for chosen, truth in pairs]
            power = [chosen[truth].mean() for chosen, truth in pairs]
            rows.append(facts | {"method": method, "fdp": np.mean(wrong), "power": np.mean(power)})
    return rows


def mix(y: np.ndarray, fraction: Any, rng: np.random.Generator) -> np.ndarray:
    """Choose the numbers of as many rows as possible with a fraction of anomalies."""
    normal, anomalous = (rng.permutation(np.flatnonzero(y == value)) for value in (False, True))
    if fraction != "all":
        ratio = fraction / (1 - fraction)
        count = max(1, min(len(anomalous), round(ratio * len(normal))))
        normal, anomalous = normal[: round(count / ratio)], anomalous[:count]
    return np.concatenate([normal, anomalous])


def table(results: pd.DataFrame) -> str:
    """Write means over sets, of the means over seeds, with 95% intervals over sets."""
    lines = []
    results = results.assign(in_reach=results["needed"] <= results["anomalies"])
    for (mixture, method), of_method in results.groupby(["mixture", "method"], sort=False):
        line = {"anomalies": mixture, "method": method, "sets": of_method["set"].nunique()}
        for level, rows in of_method.groupby("level"):
            means = rows.groupby("set")[["fdp", "power", "in_reach"]].mean()
            for name in ("fdp", "power"):
                line[f"{name} at {level:.0%}"] = with_interval(mean_interval(means[name]))
            line[f"in reach at {level:.0%}"] = int(means["in_reach"].sum())
        lines.append(line)
    return markdown(lines)


if __name__ == "__main__":
    main()
