"""Simulation-based inference: posteriors of two moons and SLCP, compared with reference samples.

    python -m benchmarks.simulation_inference SBIBM --results=RESULTS.csv  # measure what is missing
    python -m benchmarks.simulation_inference --page --published=main_paper.csv

SBIBM is a folder with the package sbibm (Lueckmann et al. 2021), which has observations and samples
of their posteriors; ``pip install --no-deps --target=SBIBM sbibm`` writes it. Its dependencies are
not needed: the two simulators and the measure are here. ``main_paper.csv`` has the published
results (github.com/sbi-benchmark/results, ``benchmarking_sbi/results``).

A conditional flow of the parameters given the data is trained on simulations from the prior, once
for all observations. The parameters, uniform in a box, are mapped to normal ones, so that no sample
is outside of the box. A tenth of the simulations validates. The accuracy of a classifier that
distinguishes 10,000 samples from 10,000 of the reference (C2ST, 0.5 is the best) is that of sbibm:
a perceptron with two layers of ten times as many units as parameters, and 5-fold cross-validation.
"""

import argparse
import csv
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import stats
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

from submanifold.config.project import PACKAGED_CONF
from submanifold.config.resolve import resolve
from submanifold.data.arrays import with_context
from submanifold.models import Model
from submanifold.training.phases import train_phase

RESULTS = Path("data/08_reporting/simulation_inference.csv")
FIELDS = ("task", "simulations", "seed", "observation", "c2st", "training_seconds")
OBSERVATIONS, SAMPLES = 10, 10_000
HELD_OUT = 0.1
NOISE = {"input_noise": 0.01, "input_noise_min": 0.001}
"""Noise scales of the training, in standard deviations of the normal parameters; the smallest of
those of the method of tables would blur two moons."""
POWERS = {1000: "10³", 10_000: "10⁴", 100_000: "10⁵"}
"""Numbers of simulations as the published file writes them."""


class Task(NamedTuple):
    """Prior U(-bound, bound) of ``dim`` parameters, and a simulator of their data (N, ...)."""

    dim: int
    bound: float
    simulate: Callable[[np.ndarray, np.random.Generator], np.ndarray]


def two_moons(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate a point of a crescent, shifted by functions of both parameters; (N, 2)."""
    angle = rng.uniform(-np.pi / 2, np.pi / 2, len(theta))
    radius = rng.normal(0.1, 0.01, len(theta))
    crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], 1)
    total, difference = theta.sum(1), theta[:, 1] - theta[:, 0]
    return crescent + np.stack([-abs(total), difference], 1) / np.sqrt(2)


def slcp(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate four points of a normal distribution with five parameters; (N, 8)."""
    first, second = theta[:, 2] ** 2, theta[:, 3] ** 2
    correlation = np.tanh(theta[:, 4])
    e = rng.normal(size=(2, len(theta), 4))
    x = theta[:, :1] + first[:, None] * e[0]
    mixed = correlation[:, None] * e[0] + np.sqrt(1 - correlation**2)[:, None] * e[1]
    y = theta[:, 1:2] + second[:, None] * mixed
    return np.stack([x, y], 2).reshape(len(theta), 8)


TASKS = {"two_moons": Task(2, 1.0, two_moons), "slcp": Task(5, 3.0, slcp)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--simulations", type=int, nargs="+", default=[10_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--observations", type=int, default=OBSERVATIONS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--published", type=Path, help="main_paper.csv")
    parser.add_argument("--page", action="store_true", help="print the page without measuring")
    options = parser.parse_args()
    if not options.page:
        if options.folder is None:
            parser.error("folder: expected the folder with the package sbibm, got none")
        torch.set_num_threads(1)
        measure_all(options)
    published = None if options.published is None else pd.read_csv(options.published)
    print(page(pd.read_csv(options.results), published))


def measure_all(options: Any) -> None:
    """Append the rows that are missing to the file of results."""
    path: Path = options.results
    path.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if path.exists():
        found = pd.read_csv(path)
        done = set(zip(found["task"], found["simulations"], found["seed"], strict=True))
    for seed in options.seeds:
        for count in options.simulations:
            for name in options.tasks:
                if (name, count, seed) in done:
                    continue
                rows = measure(name, count, seed, options)
                is_new = not path.exists()
                with path.open("a", newline="") as opened:
                    writer = csv.DictWriter(opened, FIELDS)
                    if is_new:
                        writer.writeheader()
                    writer.writerows(rows)


def measure(name: str, count: int, seed: int, options: Any) -> list[dict[str, Any]]:
    """Train one flow, and compare its posteriors of all observations."""
    task = TASKS[name]
    rng = np.random.default_rng([seed, count])
    theta = rng.uniform(-task.bound, task.bound, (count, task.dim))
    data = task.simulate(theta, rng)
    mean, std = data.mean(0), data.std(0)
    events = with_context(to_normal(theta, task.bound), ((data - mean) / std).astype(np.float32))
    start = time.process_time()
    model = train(events, seed, options.steps)
    seconds = round(time.process_time() - start, 1)
    rows = []
    for number in range(1, options.observations + 1):
        files = options.folder / f"sbibm/tasks/{name}/files/num_observation_{number}"
        observed = (pd.read_csv(files / "observation.csv").to_numpy() - mean) / std
        reference = pd.read_csv(files / "reference_posterior_samples.csv.bz2").to_numpy()
        given = torch.from_numpy(observed.astype(np.float32))
        generator = torch.Generator().manual_seed(seed)
        samples = model.sample(SAMPLES, generator=generator, context=given).double().numpy()
        found = c2st(reference, task.bound * (2 * stats.norm.cdf(samples) - 1))
        rows.append({"task": name, "simulations": count, "seed": seed, "observation": number,
                     "c2st": round(found, 5), "training_seconds": seconds})  # fmt: skip
    return rows


def to_normal(theta: np.ndarray, bound: float) -> np.ndarray:
    """Map the uniform distribution of parameters to N(0, I)."""
    return stats.norm.ppf((theta / bound + 1) / 2).astype(np.float32)


def train(events: np.ndarray, seed: int, steps: int) -> Model:
    """Train the flow of tables, with little noise, on nine tenths of the simulations."""
    text = (PACKAGED_CONF / "base" / "parameters.yml").read_text(encoding="utf-8")
    # any vectors: data and manifold do not matter for the training of the density
    changes = {"dataset": "sphere", "method": "noise-conditional",
               "stage_1": {"dim": None},
               "density": {**NOISE, "training": {"steps": steps}}}  # fmt: skip
    experiment = resolve(yaml.safe_load(text) | changes)
    held_out = round(HELD_OUT * len(events))
    with TemporaryDirectory() as folder:
        model, _ = train_phase(
            experiment.trainings["density"], experiment.model, None, events[held_out:],
            events[:held_out], seed, torch.device("cpu"), Path(folder), "density",
        )  # fmt: skip
    return model.eval()


def c2st(reference: np.ndarray, samples: np.ndarray) -> float:
    """Return the accuracy of a classifier of both samples, as sbibm's function of this name."""
    mean, std = reference.mean(0), reference.std(0, ddof=1)
    x = (np.concatenate([reference, samples]) - mean) / std
    y = np.repeat([0, 1], [len(reference), len(samples)])
    units = 10 * x.shape[1]
    network = MLPClassifier((units, units), max_iter=10_000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(cross_val_score(network, x, y, cv=folds).mean())


def page(rows: pd.DataFrame, published: pd.DataFrame | None) -> str:
    """Describe the results in Markdown."""
    lines = []
    for (task, count), own in rows.groupby(["task", "simulations"], sort=False):
        by_observation = own.groupby("observation")["c2st"].mean()
        line = {
            "task": task, "simulations": f"{count:,}", "flow": by_observation.mean(),
            "seeds": own["seed"].nunique(),
            "observations": f"{by_observation.min():.3f} to {by_observation.max():.3f}",
            "training, s": round(own.groupby("seed")["training_seconds"].first().mean()),
        }  # fmt: skip
        if published is not None:
            same = (published["task"] == task) & (published["num_simulations"] == POWERS.get(count))
            for name in ("NPE", "SNPE"):
                found = published[same & (published["algorithm"] == name)]
                line[f"published {name}"] = found["C2ST"].mean()
                if name == "NPE":
                    theirs = found.set_index("num_observation")["C2ST"].loc[by_observation.index]
                    line["better"] = f"{(by_observation < theirs).sum()} of {len(by_observation)}"
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, floatfmt=".3f")


if __name__ == "__main__":
    main()
