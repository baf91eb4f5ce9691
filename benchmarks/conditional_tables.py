"""Densities of one column given the others, compared with a Gaussian process and a forest.

    python -m benchmarks.conditional_tables --adbench=FOLDER --california=california.csv
    python -m benchmarks.conditional_tables --page           # print the page of earlier results

Sets are scikit-learn's diabetes, the file of California housing if its path is given (a CSV file
whose last column is the target), and columns of tables of ADBench given their other columns, as
stand-ins for regression sets if the folder of its npz files is given.

Sets of more than ``--rows`` rows are subsampled. A fifth of the rows is the test; rows and target
are standardized by the others. The log-score is -log p(y | x) of a test row, in nats, for the
standardized target. Scores of test rows are in ``data/08_reporting/conditional_tables.csv``; what
is there is not measured again.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from benchmarks.adbench import FEW, FOLDS, HELD_OUT, make_experiment
from submanifold.data.arrays import with_context
from submanifold.evaluation.scores import log_prob_at
from submanifold.flows import conditioning
from submanifold.models import Model
from submanifold.training.phases import train_phase

RESULTS = Path("data/08_reporting/conditional_tables.csv")
STAND_INS = {"WDBC": 1, "Wilt": 0, "Waveform": 10, "magic.gamma": 0}
"""Tables of ADBench, and the number of the column that is the target."""
TEST = 0.2
SCALES = np.linspace(0, 1, 21)
TREES, LEAF = 300, 5
BANDWIDTHS = np.geomspace(0.02, 1, 15)
FITTED, GIVEN = 1000, 2000
"""Rows for the hyperparameters of the Gaussian process, and rows on which it is conditional."""
DRAWS = 2000
FLOW = "flow"


class Split(NamedTuple):
    """Standardized columns x (N, D) and targets y (N,), and the numbers of the test rows."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    rows: np.ndarray


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adbench", type=Path, help="folder of ADBench's npz files")
    parser.add_argument("--california", type=Path, help="CSV file, the last column is the target")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="print the page without measuring")
    options = parser.parse_args()
    if not options.page:
        torch.set_num_threads(1)
        measure_all(options)
    print(page(pd.read_csv(options.results)))


def read_sets(options: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, the columns and the target of each set."""
    diabetes = load_diabetes()
    yield "diabetes", diabetes.data, diabetes.target
    if options.california is not None:
        table = pd.read_csv(options.california).to_numpy(np.float64)
        yield "California housing", table[:, :-1], table[:, -1]
    for name, column in STAND_INS.items() if options.adbench is not None else ():
        (file,) = options.adbench.glob(f"*_{name}.npz")
        with np.load(file, allow_pickle=True) as arrays:
            table = arrays["X"].astype(np.float64)
        yield f"{name}, column {column}", np.delete(table, column, 1), table[:, column]


def measure_all(options: Any) -> None:
    """Append the scores that are missing to the file of results."""
    path: Path = options.results
    path.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if path.exists():
        found = pd.read_csv(path)
        done = set(zip(found["set"], found["seed"], found["method"], strict=True))
    for seed in options.seeds:
        for name, x, y in read_sets(options):
            split = make_split(x, y, seed, options.rows)
            for method, function in METHODS.items():
                if (name, seed, method) in done:
                    continue
                start = time.process_time()
                log_prob = function(split, seed)
                pd.DataFrame({
                    "set": name, "seed": seed, "method": method, "training_rows": len(split.y),
                    "columns": split.x.shape[1], "seconds": time.process_time() - start,
                    "row": split.rows, "score": -log_prob,
                }).to_csv(path, mode="a", header=not path.exists(), index=False)  # fmt: skip


def make_split(x: np.ndarray, y: np.ndarray, seed: int, rows: int) -> Split:
    """Draw training and test rows, and standardize both."""
    chosen = np.random.default_rng([seed, 23]).permutation(len(y))[:rows]
    test, train = np.split(chosen, [round(TEST * len(chosen))])
    std = x[train].std(0)
    x = (x - x[train].mean(0)) / np.where(std > 0, std, 1)
    y = (y - y[train].mean()) / y[train].std()
    return Split(x[train], y[train], x[test], y[test], test)


def linear(split: Split, seed: int) -> np.ndarray:
    """Linear regression with normal errors of one variance."""
    x, test_x = (np.column_stack([each, np.ones(len(each))]) for each in (split.x, split.test_x))
    weights, *_ = np.linalg.lstsq(x, split.y, rcond=None)
    squared = np.square(split.y - x @ weights).sum()
    return norm(test_x @ weights, np.sqrt(squared / (len(x) - x.shape[1]))).logpdf(split.test_y)


def gaussian_process(split: Split, seed: int) -> np.ndarray:
    """Gaussian process with one length per column, and noise."""
    lengths = np.full(split.x.shape[1], 3.0)
    kernel = ConstantKernel(1.0) * RBF(lengths) + WhiteKernel(0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lengths of columns without effect are at their bound
        fitted = GaussianProcessRegressor(kernel).fit(split.x[:FITTED], split.y[:FITTED])
    found = GaussianProcessRegressor(fitted.kernel_, optimizer=None)
    mean, std = found.fit(split.x[:GIVEN], split.y[:GIVEN]).predict(split.test_x, return_std=True)
    return norm(mean, std).logpdf(split.test_y)


def forest(split: Split, seed: int) -> np.ndarray:
    """Training targets with the weights of a quantile forest (Meinshausen 2006), and a kernel.

    The width of the normal kernel is the best for a fifth of the training rows, in random order.
    """

    def log_probs(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray,
                  widths: np.ndarray) -> np.ndarray:  # fmt: skip
        fitted = RandomForestRegressor(
            TREES, min_samples_leaf=LEAF, max_features=1 / 3, random_state=seed
        ).fit(x, y)
        leaves, test_leaves = fitted.apply(x), fitted.apply(test_x)
        weights = np.zeros((len(test_x), len(x)))
        for own, test_own in zip(leaves.T, test_leaves.T, strict=True):
            same = test_own[:, None] == own
            weights += same / same.sum(1, keepdims=True) / TREES
        distances = abs(test_y[:, None] - y)
        return np.array([
            logsumexp(norm.logpdf(distances, scale=width), axis=1, b=weights) for width in widths
        ])  # fmt: skip

    (held_x, x), (held_y, y) = (np.split(each, [round(HELD_OUT * len(split.y))])
                                for each in (split.x, split.y))  # fmt: skip
    best = log_probs(x, y, held_x, held_y, BANDWIDTHS).mean(1).argmax()
    return log_probs(*split[:4], BANDWIDTHS[[best]])[0]


def flow(split: Split, seed: int) -> np.ndarray:
    """The density of the method of tables, at the noise scale that is the best for held-out rows.

    A fifth of the rows is held out. With fewer than 1,000 rows the mean density of three models,
    each trained on two thirds of the rows in a third of the steps.
    """
    order = np.random.default_rng(seed).permutation(len(split.y))
    parts = [order[: round(HELD_OUT * len(order))]]
    if len(order) < FEW:
        parts = [order[number::FOLDS] for number in range(FOLDS)]
    events = with_context(split.y[:, None].astype(np.float32), split.x.astype(np.float32))
    models, experiment = [], make_experiment(0.0, len(parts))
    for number, held_out in enumerate(parts):
        rest = np.setdiff1d(order, held_out)
        with TemporaryDirectory() as folder:
            model, _ = train_phase(
                experiment.trainings["density"], experiment.model, None, events[rest],
                events[held_out], 100 * seed + number, torch.device("cpu"), Path(folder), "density",
            )  # fmt: skip
            models.append(model.eval())
    found = [
        np.concatenate([log_probs(model, split.x[part], split.y[part], scale)
                        for model, part in zip(models, parts, strict=True)]).mean()
        for scale in SCALES
    ]  # fmt: skip
    best = float(SCALES[np.argmax(found)])
    each = np.stack([log_probs(model, split.test_x, split.test_y, best) for model in models])
    return logsumexp(each, axis=0) - np.log(len(models))


@torch.no_grad()
def log_probs(model: Model, x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray:
    """Return the log-densities of y (N,) given x (N, D) at a noise scale."""
    given, target = (torch.from_numpy(each.astype(np.float32)) for each in (x, y[:, None]))
    with conditioning(model, given):
        return log_prob_at(model, target, scale).double().numpy()


METHODS: dict[str, Callable[[Split, int], np.ndarray]] = {
    FLOW: flow,
    "Gaussian process": gaussian_process,
    "quantile forest": forest,
    "linear": linear,
}


def page(scores: pd.DataFrame) -> str:
    """Describe the results in Markdown."""
    lines = []
    for name, own in scores.groupby("set", sort=False):
        wide = own.pivot_table(index=["row", "seed"], columns="method", values="score")
        line: dict[str, Any] = {"set": name, "seeds": own["seed"].nunique(),
                                "rows": own["training_rows"].iloc[0],
                                "columns": own["columns"].iloc[0]}  # fmt: skip
        for method in METHODS:
            line[method] = f"{wide[method].mean():.3f}".replace("-", "−")
        for method in METHODS:
            if method != FLOW:
                line[f"minus {method}"] = _difference(wide[FLOW] - wide[method])
        lines.append(line)
    table = pd.DataFrame(lines)
    seconds = scores.groupby(["set", "method", "seed"], sort=False)["seconds"].first()
    medians = seconds.groupby(["set", "method"], sort=False).mean().unstack()[list(METHODS)]
    return "\n\n".join([
        table[["set", "seeds", "rows", "columns", *METHODS]].to_markdown(index=False),
        table[["set", *[each for each in table if each.startswith("minus")]]].to_markdown(
            index=False
        ),
        medians.round(1).to_markdown(),
    ])  # fmt: skip


def _difference(values: pd.Series) -> str:
    """Write the mean of differences, and its interval by a bootstrap over rows of the table.

    The scores of a row that is a test row in several seeds are drawn together.
    """
    by_row = values.groupby("row").agg(["sum", "count"]).to_numpy()
    rng = np.random.default_rng(0)
    drawn = by_row[rng.integers(len(by_row), size=(DRAWS, len(by_row)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")


if __name__ == "__main__":
    main()
