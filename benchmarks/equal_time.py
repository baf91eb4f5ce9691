"""Bits per dimension of the default method and of a plain Glow, at equal processor time.

    python -m benchmarks.equal_time --celeba=img_align_celeba.zip --rooms=rooms.zip

Trains both with each seed on the built-in photographs and on the data sets that are given (about
nine minutes of one core each), and prints the table of docs/evidence/performance.md. Measurements
are kept in data/equal_time/.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from kedro.framework.startup import bootstrap_project

from benchmarks.results import kept, markdown
from submanifold.data.batches import Batches
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, to_bits_per_dim
from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.runs.experiments import CachedRun
from submanifold.training.phases import train_phases

GLOW, DEFAULT = "Glow", "density-first"
STEPS = {GLOW: {"density": {"training": {"steps": 5250}}}, DEFAULT: {}}
DIMS, EVERY = (100, 500, 1000), 8
CPU = torch.device("cpu")


@click.command()
@click.option("--celeba", type=click.Path(exists=True, path_type=Path))
@click.option("--rooms", type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=3, show_default=True)
def main(celeba: Path | None, rooms: Path | None, seeds: int) -> None:
    """Train what is missing, and print the table."""
    bootstrap_project(Path.cwd())
    sources: dict[str, dict[str, Any]] = {"photos": {"dataset": "photos"}}
    if celeba:
        sources["celeba"] = {"dataset": "celeba", "data": {"path": str(celeba.resolve())}}
    if rooms:
        sources["rooms"] = {"dataset": "lsun_bedroom", "data": {"path": str(rooms.resolve())}}
    rows = []
    for data, source in sources.items():
        found = {m: [_measure(data, source, m, seed) for seed in range(seeds)] for m in STEPS}
        rows.append(_row(data, _run(source, DEFAULT), found))
    print(markdown(rows))


def _row(data: str, run: CachedRun, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    bits = {method: [np.mean(each["bits"]) for each in runs] for method, runs in found.items()}
    differences = np.subtract(bits[DEFAULT], bits[GLOW])
    pca, test = PCA.fit(pca_batches(run.load("x_train"))), run.load("x_test")[::EVERY]
    nearest = [
        np.mean([np.mean(each["errors"][str(d)]) for each in found[DEFAULT]])
        / squared_errors(lambda x, d=d: pca.project(x, d), Batches(test, 64)).mean()
        for d in DIMS
    ]
    groups = groups_of(run.groups, "test")
    paired = np.mean([np.subtract(a["bits"], b["bits"]) for a, b in zip(
        found[DEFAULT], found[GLOW], strict=True)], axis=0)  # fmt: skip
    return {
        "data": data,
        "seeds": len(differences),
        **{
            f"{method}, seconds": f"{np.mean([r['seconds'] for r in runs]):.0f}"
            for method, runs in found.items()
        },
        **{f"{method}, BPD": f"{np.mean(values):.4f}" for method, values in bits.items()},
        "difference": format_interval(mean_interval(paired, groups), "+.4f"),
        "difference by seed": ", ".join(f"{each:+.4f}" for each in differences),
        "nearest / PCA, d = 100, 500, 1000": " / ".join(f"{each:.3f}" for each in nearest),
    }


def _run(source: dict[str, Any], method: str) -> CachedRun:
    return CachedRun(method, {**source, "method": method, **STEPS[method]}, Path.cwd(), None, False)


def _measure(data: str, source: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
    folder = Path("data/equal_time") / f"{data}-{method}-{seed}"
    return kept(folder / "measured.json", partial(_train, source, method, seed, folder))


def _train(source: dict[str, Any], method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train a model phase by phase, and measure it on the test images."""
    torch.manual_seed(0)
    run = _run(source, method)
    if not run.catalog.exists("x_train"):
        run.run("x_train")
    settings = run.settings
    started = time.process_time()
    model = train_phases(settings.phases, settings.model, run.load("x_train"), run.load("x_valid"),
                         seed, CPU, folder)  # fmt: skip
    seconds = time.process_time() - started
    test = run.load("x_test")
    with torch.no_grad():
        (log_prob,) = dequantized_log_probs(model.eval(), test, 1, CPU)
        errors = {}
        for d in DIMS if method == DEFAULT else ():
            project = partial(model.at_dim(d).project, nearest=True)
            of_images = squared_errors(project, Batches(test[::EVERY], 64))
            errors[str(d)] = np.where(of_images <= 1, of_images, 1.0).tolist()
    bits = to_bits_per_dim(log_prob, test).tolist()
    print(folder.name, np.mean(bits), seconds, flush=True)
    return {"bits": bits, "errors": errors, "seconds": seconds}


if __name__ == "__main__":
    main()
