"""Selection of anomalies with a false discovery rate, in the tables of ADBench.

    python -m benchmarks.selection FOLDER     # measures what is missing, prints the table

Splits are those of the protocol ``semi`` of :mod:`benchmarks.anomalies`. The oracle knows the
labels: it selects the most rows of highest scores of which at most the promised fraction is normal.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.anomalies import ROWS, Split, make_split
from benchmarks.results import kept, markdown, with_interval
from submanifold.evaluation.discoveries import select
from submanifold.evaluation.intervals import mean_interval
from submanifold.sklearn import MIN_ROWS, ManifoldFlow

RESULTS = Path("data/08_reporting/selection")
LEVELS, FRACTIONS, REPEATS, ALPHA = (0.05, 0.1, 0.2), (0.05, 0.1), 20, 0.05
MEANS = ["false discoveries", "power", "oracle", "false alarms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed, path in product(options.seeds, sorted(options.folder.glob("*.npz"))):
        with np.load(path, allow_pickle=True) as arrays:
            split = make_split(arrays["X"], arrays["y"] == 1, "semi", seed, ROWS)
        if len(split.train) < MIN_ROWS:
            continue  # all rows train and calibrate a split model
        for calibration in ("cross", "split"):
            file = RESULTS / f"{path.stem}-{seed}-{calibration}.json"
            detected = kept(file, partial(detect, split, calibration, seed))
            about = {"calibration": calibration, "table": path.stem, "seed": seed}
            rows += [about | row for row in evaluate(split.anomaly, detected, seed)]
    print(summary(pd.DataFrame(rows)))


def detect(split: Split, calibration: str, seed: int) -> dict[str, list[float]]:
    """Compute anomaly scores and p-values of the test rows."""
    flow = ManifoldFlow(calibration=calibration, random_state=seed, device="cpu", alpha=0.2)
    scores = -flow.fit(split.train).decision_function(split.test)
    return {"scores": scores.tolist(), "p_values": flow.p_values(split.test).tolist()}


def evaluate(anomaly: np.ndarray, detected: dict[str, list[float]], seed: int) -> list[Any]:
    """Measure selections among mixtures of test rows with fractions of anomalies."""
    scores, p_values = np.array(detected["scores"]), np.array(detected["p_values"])
    rows: list[dict[str, Any]] = []
    for fraction in FRACTIONS:
        rng = np.random.default_rng(seed)
        mixtures = [mix(anomaly, fraction, rng) for _ in range(REPEATS)]
        for level, numbers in product(LEVELS, mixtures):
            truth, chosen = anomaly[numbers], select(p_values[numbers], level)
            measured = (
                (chosen & ~truth).sum() / max(1, chosen.sum()),
                chosen[truth].mean(),
                oracle_power(truth, scores[numbers], level),
                (p_values[~anomaly] <= ALPHA).mean(),
            )
            about = {"anomalies": f"{fraction:.0%}", "level": level}
            rows.append(about | dict(zip(MEANS, measured, strict=True)))
    return rows


def mix(anomaly: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Choose the numbers of as many rows as possible with a fraction of anomalies."""
    normal, anomalous = (rng.permutation(np.flatnonzero(part)) for part in (~anomaly, anomaly))
    ratio = fraction / (1 - fraction)
    count = max(1, min(len(anomalous), round(ratio * len(normal))))
    return np.concatenate([normal[: round(count / ratio)], anomalous[:count]])


def oracle_power(anomaly: np.ndarray, scores: np.ndarray, level: float) -> float:
    """Return the fraction of the anomalies in the oracle's selection, which keeps ties together."""
    order = np.argsort(-scores)
    selected = anomaly[order].cumsum()
    is_allowed = selected >= (1 - level) * np.arange(1, len(order) + 1)
    is_allowed[:-1] &= np.diff(scores[order]) != 0
    return float(selected[is_allowed].max(initial=0) / selected[-1])


def summary(rows: pd.DataFrame) -> str:
    """Write means over tables with 95% intervals, and the spread of the false alarms."""
    lines = []
    of_tables = rows.groupby(["anomalies", "calibration", "level", "table", "seed"])[MEANS].mean()
    for names, of_method in of_tables.groupby(level=[0, 1, 2]):
        line = dict(zip(("anomalies", "calibration", "level"), names, strict=True))
        means = of_method.groupby("table").mean()
        line |= {name: with_interval(mean_interval(means[name])) for name in MEANS}
        line["of the oracle"] = f"{means['power'].mean() / means['oracle'].mean():.1%}"
        line["deviation of the false alarms"] = f"{of_method['false alarms'].std():.2%}"
        lines.append(line)
    return markdown(lines)


if __name__ == "__main__":
    main()
