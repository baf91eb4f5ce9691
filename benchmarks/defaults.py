"""What each part of the default method is worth, on the built-in photographs.

    python -m benchmarks.defaults

Trains each variant (minutes per variant), compares it with the default on the same test images,
and prints the table of docs/evidence/defaults.md. Trainings and measurements are cached in data/.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from submanifold.common.device import choose_device
from submanifold.data.batches import Batches
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, to_bits_per_dim
from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.evaluation.samples import stored
from submanifold.evaluation.sliced_wasserstein import sliced_wasserstein
from submanifold.studies.comparisons.measures import cached, load_model
from submanifold.studies.experiments import CachedRun

DEFAULT = "**density-first, the default**"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {"method": "density-first"},
    "penalty of weight 20 instead of 40": {
        "method": "density-first",
        "reconstruction.reconstruction.weight": 20,
    },
    "penalty of weight 100": {
        "method": "density-first",
        "reconstruction.reconstruction.weight": 100,
    },
    "penalty at d = 500 only, not at random d": {
        "method": "density-first",
        "reconstruction.reconstruction.random_dim": None,
    },
    "no rotations, no flow on the coordinates (`penalty-after`)": {"method": "penalty-after"},
    "no flow on the coordinates (`nested`)": {"method": "nested"},
    "no penalty, no flow on the coordinates (`Glow-rotated`)": {
        "method": "Glow-rotated",
        "density.training.steps": 4540,
    },
    "the paper's `H-MM`": {"method": "H-MM"},
}
DIMS, EVERY, SAMPLES = (100, 500, 1000), 8, 1000


def measure(run: CachedRun) -> dict[str, Any]:
    """Measure bits of all test images, errors of every eighth, and the distance of samples."""
    model = load_model(run)
    device = choose_device(run.settings.device)
    test = run.load("x_test")
    (log_prob,) = dequantized_log_probs(model, test, 1, device)
    some = Batches(test[::EVERY], 64, device=device)
    errors = {
        f"{name} {dim}": _clipped(
            squared_errors(
                partial(model.at_dim(dim).project, exact=True)
                if name == "nearest"
                else model.at_dim(dim).encoder_projection,
                some,
            )
        )
        for dim in DIMS
        for name in ("encoder", "nearest")
    }
    generator = torch.Generator().manual_seed(0)
    drawn = [stored(model.sample(100, generator=generator)) for _ in range(SAMPLES // 100)]
    pair = groups_of(run.groups, "test"), None
    distance = sliced_wasserstein(test, np.concatenate(drawn), groups=pair)
    bits = to_bits_per_dim(log_prob, test).tolist()
    return {"bits": bits, "errors": errors, "distance": distance}


def _clipped(errors: np.ndarray) -> list[float]:
    """Count errors above 1, and non-finite ones, as 1."""
    return np.where(errors <= 1, errors, 1.0).tolist()


def main() -> None:
    """Train what is missing, and print the tables."""
    torch.manual_seed(0)
    found = {}
    for label, params in VARIANTS.items():
        run = CachedRun(label, {"dataset": "photos"}, Path.cwd(), evaluated=False)
        for name, value in params.items():
            run = run.changed(name, value)
        if not run.is_finished:
            run.run()
        with torch.no_grad():
            found[label] = cached(run, run.key, "defaults", lambda run=run: measure(run))
    groups = groups_of(run.groups, "test")
    some_groups = None if groups is None else groups[::EVERY]
    pca, some = PCA.fit(pca_batches(run.load("x_train"))), run.load("x_test")[::EVERY]
    by_pca = {
        d: squared_errors(lambda x, d=d: pca.project(x, d), Batches(some, 64)).mean() for d in DIMS
    }
    default = found[DEFAULT]
    rows = []
    for label, each in found.items():
        errors = {name: np.array(values) for name, values in each["errors"].items()}
        bits = mean_interval(np.array(each["bits"]) - np.array(default["bits"]), groups)
        reference = np.array(default["errors"]["nearest 500"])
        nearest = mean_interval(
            100 * (errors["nearest 500"] - reference) / reference.mean(), some_groups
        )
        is_default = label == DEFAULT
        rows.append({
            "variant": label,
            "BPD": f"{np.mean(each['bits']):.3f}",
            "BPD, difference": "" if is_default else format_interval(bits, "+.3f"),
            "nearest MSE at 500, difference":
                "" if is_default else format_interval(nearest, "+.0f") + " %",
            **{
                f"{name} / PCA": " / ".join(
                    f"{errors[f'{name} {d}'].mean() / by_pca[d]:.2f}" for d in DIMS
                )
                for name in ("nearest", "encoder")
            },
            "samples, sliced Wasserstein": format_interval(each["distance"], ".0f"),
        })  # fmt: skip
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    print("PCA:", ", ".join(f"{error:.5f} (d = {d})" for d, error in by_pca.items()))


if __name__ == "__main__":
    main()
