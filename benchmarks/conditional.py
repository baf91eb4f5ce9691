"""Class-conditional densities of images, compared with unconditional ones.

    python -m benchmarks.conditional mnist=FOLDER fashion_mnist=FOLDER

FOLDER has torchvision's files of the data set. Trains an unconditional and a conditional model for
each data set and seed, and prints the table of docs/evidence/conditional.md. Trainings and
measurements are cached in data/, so that an interrupted command resumes.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from kedro.framework.startup import bootstrap_project
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.results import markdown, over_seeds
from submanifold.data.arrays import context_of_array
from submanifold.data.batches import Batches
from submanifold.evaluation.likelihood import to_bits_per_dim
from submanifold.evaluation.measure import calibration_error
from submanifold.evaluation.samples import stored
from submanifold.flows import context_of
from submanifold.models import Model
from submanifold.models.classifier import class_log_probs
from submanifold.runs.experiments import CachedRun

Results = dict[str, list[dict[str, Any]]]  #: Of models, one for each seed.
UNCONDITIONAL, CONDITIONAL = MODELS = "unconditional", "conditional"
DIM, COOL = 100, 0.7
COLUMNS = {
    "marginal": "without the label",
    "accuracy": "accuracy",
    "calibration_error": "ECE",
    "agreement": f"agreement, d = {DIM}",
    "agreement_all": "agreement, all latents",
    "agreement_cool": f"agreement, temperature {COOL}",
}
CLASSIFIED, SAMPLES, PER_BATCH = 20_000, 2000, 500


def run_of(name: str, path: str, model: str, seed: int, steps: int) -> CachedRun:
    counts = {"train": 30_000, "valid": 1000}
    params: dict[str, Any] = {
        "dataset": name,
        "method": "M-flow",
        "rotated": True,
        "seed": seed,
        "threads": 1,
        "data": {"path": path, "size": 28, "margin": 0, "counts": counts},
        "stage_1": {"dim": DIM, "flow": {"levels": 2, "steps": 4, "width": 32}},
        "stage_2": {"dim": None, "flow": {"type": "realnvp", "hidden": 128}},
        "reconstruction": {
            "likelihood": {"weight": 1},
            "reconstruction": {"penalty": "none"},
            "training": {"steps": steps},
        },
        "rotation": {"probes": 2000},
        "code_flow": {"training": {"steps": 600, "batch_size": 128, "learning_rate": 0.002}},
    }
    if model == CONDITIONAL:
        params["data"]["condition"] = "label"
    return CachedRun(f"{name}, {model}, seed {seed}", params, Path.cwd(), evaluated=False)


def linear_classifier(images: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """Fit a logistic regression to the pixels of the first 20,000 training images."""
    x, y = _pixels(images[:CLASSIFIED]), labels[:CLASSIFIED]
    return LogisticRegression(C=0.01, max_iter=200).fit(x, y)


@torch.no_grad()
def measure(run: CachedRun, linear: Any) -> dict[str, Any]:
    """Measure all test images, and the agreement of the linear classifier on samples."""
    model, test = run.load_model(), run.load("x_test")
    batches = Batches(np.asarray(test), PER_BATCH)
    if not context_of(model):
        return {"bits": _bits(torch.cat([model.log_prob(x) for x, _ in batches]), test)}
    log_probs = torch.cat([class_log_probs(model, x) for x, _ in batches])
    labels = torch.from_numpy(np.array(context_of_array(test)))
    confidence, predicted = log_probs.softmax(1).max(1)
    is_right = (predicted == labels).numpy()
    return {
        "bits": _bits(log_probs.gather(1, labels[:, None])[:, 0], test),
        "marginal": _bits(log_probs.logsumexp(1) - math.log(log_probs.shape[1]), test),
        "accuracy": float(is_right.mean()),
        "calibration_error": calibration_error(confidence.numpy(), is_right),
        "agreement": agreement(model, linear),
        "agreement_all": agreement(model.at_dim(model.event_dim), linear),
        "agreement_cool": agreement(model, linear, COOL),
    }


def _bits(log_prob: Tensor, images: np.ndarray) -> float:
    return float(to_bits_per_dim(log_prob.double().numpy(), images).mean())


def agreement(model: Model, linear: LogisticRegression, temperature: float = 1.0) -> float:
    """Fraction of samples that the linear classifier gives their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % len(linear.classes_)
    samples = [
        stored(model.sample(len(part), temperature, generator, part))
        for part in labels.split(PER_BATCH)
    ]
    return float((linear.predict(_pixels(np.concatenate(samples))) == labels.numpy()).mean())


def _pixels(images: np.ndarray) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1) / 255


def rows_of(
    name: str, results_by_model: dict[str, list[dict[str, Any]]], real: float
) -> list[dict[str, Any]]:
    """Return the rows of a data set; differences are paired by seed."""
    rows = []
    base = [result["bits"] for result in results_by_model[UNCONDITIONAL]]
    for model, results in results_by_model.items():
        bits = [result["bits"] for result in results]
        row = {"data": name, "model": model, "bits per dimension": over_seeds(bits, ".3f")}
        row |= dict.fromkeys(["difference", *COLUMNS.values()], "–")
        if model == CONDITIONAL:
            change = [a - b for a, b in zip(bits, base, strict=True)]
            row["difference"] = over_seeds(change, ".3f")
            for key, label in COLUMNS.items():
                row[label] = over_seeds([result[key] for result in results], ".3f")
        row["test images"] = f"{real:.3f}"
        rows.append(row)
    return rows


@click.command(help=__doc__)
@click.argument("data", nargs=-1, required=True, metavar="NAME=FOLDER...")
@click.option("--seeds", default=3, show_default=True)
@click.option("--steps", default=1000, show_default=True)
def main(data: tuple[str, ...], seeds: int, steps: int) -> None:
    bootstrap_project(Path.cwd())
    rows = []
    for name, _, path in (argument.partition("=") for argument in data):
        results_by_model: Results = {model: [] for model in MODELS}
        linear, real = None, 0.0
        for seed in range(seeds):
            for model in MODELS:
                run = run_of(name, path, model, seed, steps)
                if not run.is_finished:
                    run.run()
                if linear is None and model != UNCONDITIONAL:
                    train, test = run.load("x_train"), run.load("x_test")
                    linear = linear_classifier(train, context_of_array(train))
                    real = linear.score(_pixels(test), context_of_array(test))
                result = run.cached("conditional", partial(measure, run, linear))
                results_by_model[model].append(result)
        rows += rows_of(name, results_by_model, real)
    print(markdown(rows))


if __name__ == "__main__":
    main()
