"""Bits per dimension of the default method and of a plain Glow, at equal processor time.

    python -m benchmarks.equal_time --celeba=img_align_celeba.zip --rooms=rooms.zip

Trains both with each seed on the built-in photographs and on the data sets that are given (about
nine minutes of one core each), and prints the table of docs/evidence/performance.md. Measurements
are kept in data/equal_time/; `--only=photos,Glow,0` makes one of them and prints no table, and
`--measured` prints the table of those that exist.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from kedro.framework.startup import bootstrap_project

from submanifold.data.batches import Batches
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, to_bits_per_dim
from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.studies.experiments import CachedRun
from submanifold.training.phases import encode_rows, rotate_phase, train_phase
from submanifold.training.rotation import RotationSettings

GLOW, DEFAULT = "Glow", "density-first"
STEPS = {GLOW: {"density": {"training": {"steps": 5250}}}, DEFAULT: {}}
DIMS, EVERY = (100, 500, 1000), 8
CPU = torch.device("cpu")


@click.command()
@click.option("--celeba", type=click.Path(exists=True, path_type=Path))
@click.option("--rooms", type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--only", help="DATA,METHOD,SEED: one training, and no table.")
@click.option("--measured", is_flag=True, help="Train nothing: the table of what exists.")
def main(
    celeba: Path | None, rooms: Path | None, seeds: int, only: str | None, measured: bool
) -> None:
    """Train what is missing, and print the table."""
    bootstrap_project(Path.cwd())
    sources: dict[str, dict[str, Any]] = {"photos": {"dataset": "photos"}}
    if celeba:
        sources["celeba"] = {"dataset": "celeba", "data": {"path": str(celeba.resolve())}}
    if rooms:
        sources["rooms"] = {"dataset": "lsun_bedroom", "data": {"path": str(rooms.resolve())}}
    if only:
        data, method, seed = only.split(",")
        _measure(data, sources[data], method, int(seed))
        return
    rows = []
    for data, source in sources.items():
        chosen = list(range(seeds))
        if measured:
            chosen = [n for n in chosen if all(_path(data, m, n).exists() for m in STEPS)]
            if missing := sorted({*range(seeds)} - {*chosen}):
                print(f"{data}: not measured with seed {', '.join(map(str, missing))}")
        if chosen:
            found = {m: [_measure(data, source, m, seed) for seed in chosen] for m in STEPS}
            rows.append(_row(data, _run(source, DEFAULT), found))
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


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
            f"{method}, seconds": f"{np.mean([sum(r['seconds'].values()) for r in runs]):.0f}"
            for method, runs in found.items()
        },
        **{f"{method}, BPD": f"{np.mean(values):.4f}" for method, values in bits.items()},
        "difference": format_interval(mean_interval(paired, groups), "+.4f"),
        "difference by seed": ", ".join(f"{each:+.4f}" for each in differences),
        "nearest / PCA, d = 100, 500, 1000": " / ".join(f"{each:.3f}" for each in nearest),
    }


def _path(data: str, method: str, seed: int) -> Path:
    return Path("data/equal_time") / f"{data}-{method}-{seed}" / "measured.json"


def _run(source: dict[str, Any], method: str) -> CachedRun:
    return CachedRun(method, {**source, "method": method, **STEPS[method]}, Path.cwd(), None, False)


def _measure(data: str, source: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
    """Train a model phase by phase, and measure it on the test images."""
    path = _path(data, method, seed)
    folder = path.parent
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    torch.manual_seed(0)
    run = _run(source, method)
    if not run.catalog.exists("x_train"):
        run.run("x_train")
    settings = run.settings
    images = run.load("x_train"), run.load("x_valid")
    model: Any = None
    seconds = {}
    for name, phase in settings.phases.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        started = time.process_time()
        if isinstance(phase, RotationSettings):
            model, _ = rotate_phase(phase, model, images[0], seed, CPU, folder / name, name)
        else:
            rows = images
            if phase.stages[0] > 1:
                outer = model.part(1, phase.stages[0] - 1)
                rows = tuple(
                    encode_rows(outer, each, seed, CPU, folder / f"u_{part}.npy")
                    for part, each in zip(("train", "valid"), images, strict=True)
                )
            model, _ = train_phase(
                phase, settings.model, model, *rows, seed, CPU, folder / name, name
            )
        seconds[name] = time.process_time() - started
    test = run.load("x_test")
    with torch.no_grad():
        (log_prob,) = dequantized_log_probs(model.eval(), test, 1, CPU)
        some, errors = Batches(test[::EVERY], 64), {}
        for d in DIMS if method == DEFAULT else ():
            found_errors = squared_errors(
                lambda x, d=d: model.at_dim(d).project(x, exact=True), some
            )
            errors[str(d)] = np.where(found_errors <= 1, found_errors, 1.0).tolist()
    bits = to_bits_per_dim(log_prob, test).tolist()
    found = {"bits": bits, "errors": errors, "seconds": seconds}
    path.write_text(json.dumps(found))
    print(data, method, seed, np.mean(bits), seconds, flush=True)
    return found


if __name__ == "__main__":
    main()
