"""Processor time and memory of the default method's phases on images of three sizes.

    python -m benchmarks.phases

Each phase of each size runs in a process of its own, on the built-in photographs. Rotations run in
full; the time of a training is that of a step, times the number of steps. Prints the tables of
docs/evidence/performance.md (about an hour on one core; `--sizes=32,64` takes ten minutes).
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from kedro.framework.startup import bootstrap_project

from submanifold.data.batches import Batches
from submanifold.flows import initialize
from submanifold.models import Hierarchy
from submanifold.studies.experiments import CachedRun
from submanifold.training.phases import ROTATION_BATCH_SIZE, PhaseSettings, assemble
from submanifold.training.rotation import PROBES_PER_AXIS, fit_rotation
from submanifold.training.trainer import Trainer

SIZES = "32,64,128"
PHASES = ("density", "rotation", "reconstruction", "rotation_2")
STEPS = 6
FEW_PROBES = 1024  # of the rotation before the phase that is measured


@click.command()
@click.option("--sizes", default=SIZES, show_default=True)
@click.option("--measure", nargs=2, default=None, hidden=True)
def main(sizes: str, measure: tuple[str, str] | None) -> None:
    """Measure all phases and print the tables."""
    bootstrap_project(Path.cwd())
    if measure:
        print(json.dumps(_measure(int(measure[0]), measure[1])))
        return
    found = {}
    for size in sizes.split(","):
        _run(int(size)).run("x_train")
        for phase in PHASES:
            command = [sys.executable, "-m", "benchmarks.phases", "--measure", size, phase]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[int(size), phase] = json.loads(done.stdout.splitlines()[-1])
            print(size, phase, found[int(size), phase], flush=True)
    rows = []
    for size in sorted({size for size, _ in found}):
        seconds = {phase: found[size, phase]["seconds"] for phase in PHASES}
        rotations = seconds["rotation"] + seconds["rotation_2"]
        rows.append({
            "size": f"{size}x{size}",
            **{f"{phase}, s": f"{seconds[phase]:.0f}" for phase in PHASES},
            "rotations / density": f"{rotations / seconds['density']:.2f}",
            **{f"{phase}, GB": f"{found[size, phase]['memory'] / 1e9:.2f}" for phase in PHASES},
        })  # fmt: skip
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


def _run(size: int) -> CachedRun:
    params = {"dataset": "photos", "method": "density-first", "data": {"size": size}}
    return CachedRun(f"{size} pixels", params, Path.cwd(), evaluated=False)


def _measure(size: int, name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    run = _run(size)
    settings = run.settings
    phase: Any = settings.phases[name]
    images = run.load("x_train")
    model = Hierarchy(settings.model.build(images.shape[1:], last=1))
    rows = Batches(images, ROTATION_BATCH_SIZE)
    initialize(model, rows.at(0))
    if name != "density" and name != "rotation":
        fit_rotation(model, rows, FEW_PROBES)
    if isinstance(phase, PhaseSettings):
        device = torch.device("cpu")
        _, trained, _, objective = assemble(phase, settings.model, model, images.shape[1:], device)
        trainer = Trainer(trained, objective, phase.training)
        batches, times = Batches(images, phase.training.batch_size), []
        for step in range(STEPS):
            x, started = batches.at(step), time.process_time()
            trainer.step(x, batches.generator)
            times.append(time.process_time() - started)
        seconds, count = statistics.median(times) * phase.training.steps, phase.training.steps
    else:
        rotation = model.stages[0].rotation or model.stages[0].add_rotation()
        count = phase.probes or PROBES_PER_AXIS * rotation.directions
        started = time.process_time()
        fit_rotation(model, rows, count)
        seconds = time.process_time() - started
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "count": count, "memory": memory}


if __name__ == "__main__":
    main()
