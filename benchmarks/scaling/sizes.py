"""Larger images through both pipelines: the memory that each node takes."""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality import DEFAULT, MUON
from benchmarks.reliability import Project
from benchmarks.scaling.pictures import make_lmdb
from benchmarks.scaling.watch import watch
from submanifold.common.files import read_json, write_json
from submanifold.data.batches import Batches
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.evaluation.baselines import fit_baselines
from submanifold.evaluation.likelihood import BATCH_SIZE
from submanifold.evaluation.reconstruction import NEAREST_BATCH_SIZE
from submanifold.flows import Glow, initialize
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage, on_manifold
from submanifold.training.phases import ROTATION_BATCH_SIZE
from submanifold.training.rotation import fit_rotation
from submanifold.training.trainer import Trainer, TrainingSettings

SIZES = (64, 128)
METHODS = {"hierarchical": "nested", "joint": "EE-M"}
PICTURES, LARGEST = 3000, 160
COUNTS = {"train": 256, "valid": 32, "test": 16}
SMALL = {"stage_1.flow.steps": 1, "stage_1.flow.width": 16, "training.validate_every": 8,
         "evaluation.samples": 32, "evaluation.dequantizations": 2}  # fmt: skip
SHORT = {
    "nested": {"density.training.steps": 8, "rotation.probes": 256,
               "reconstruction.training.steps": 8, "rotation_2.probes": 256},
    "EE-M": {"joint.training.steps": 8},
}  # fmt: skip
LIMIT = 24 * 2**30


def measure(folder: Path) -> dict[str, Any]:
    """Run both pipelines on each size to their reports, and the default flow's pieces.

    What is measured is kept, and a benchmark that was killed goes on.
    """
    store, kept = folder / f"lmdb-{LARGEST}", folder / "sizes"
    if not store.exists():
        shutil.rmtree(making := folder / "making", ignore_errors=True)
        make_lmdb(making, PICTURES, LARGEST)
        making.rename(store)
    found: dict[str, Any] = {"runs": {}, "pieces": {}}
    for size in reversed(SIZES):  # the hours of a whole rotation at 64 come last
        for pipeline in reversed(METHODS):
            path = kept / f"{size}-{pipeline}.json"
            if not path.exists():
                write_json(path, _run(kept / f"{size}-{pipeline}", store, size, pipeline))
            found["runs"][f"{size}, {pipeline}"] = read_json(path)
        for name in PIECES:
            path = kept / f"{size}-{name.replace(' ', '-')}.json"
            if not path.exists():
                done = watch("-m", "benchmarks.scaling.sizes", name, str(size), str(store))
                write_json(path, json.loads(done.output.splitlines()[-1]))
            found["pieces"][f"{size}, {name}"] = read_json(path)
    return found


def _run(project: Path, store: Path, size: int, pipeline: str) -> dict[str, Any]:
    """Run a small flow to the report."""
    method = METHODS[pipeline]
    shutil.rmtree(project, ignore_errors=True)
    Project.make(project)
    chosen = {"dataset": "folder", "method": method, "data.path": store, "data.size": size}
    chosen |= {f"data.counts.{part}": count for part, count in COUNTS.items()}
    text = ",".join(f"{k}={v}" for k, v in (chosen | SMALL | SHORT[method]).items())
    done = watch("-m", "kedro", "run", f"--pipeline={pipeline}", f"--params={text}", folder=project)
    return {
        "nodes": done.by_node,
        "memory": done.memory,
        "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "reports": len([*project.glob("data/08_reporting/*/report.html")]),
    }


def model_of(images: np.ndarray) -> Hierarchy:
    """The default flow, with a manifold of the default dimension."""
    model = Hierarchy([Stage(Glow(images.shape[1:], 3, **DEFAULT), 500)])
    initialize(model, Batches(images, 32).at(0))
    return model


def train(images: np.ndarray) -> None:
    """Two steps by likelihood and reconstruction."""
    settings = TrainingSettings(steps=10, warmup=1, cooldown_fraction=0.5, ema=0.99,
                                precision="auto",
                                validate_every=10, **MUON)  # fmt: skip
    objective = penalized_likelihood(penalty="mse", weight=40.0)
    trainer, batches = Trainer(model_of(images), objective, settings), Batches(images, 32)
    for step in range(2):
        trainer.step(batches.at(step), batches.generator)


def rotate(images: np.ndarray) -> None:
    """A few probes, which are stored."""
    fit_rotation(model_of(images), Batches(images, ROTATION_BATCH_SIZE), probes=1)


def evaluate(images: np.ndarray) -> None:
    """Density and projection of a batch, its default projection, the density on the manifold."""
    model, x = model_of(images), next(iter(Batches(images, BATCH_SIZE)))
    with torch.no_grad():
        model.log_prob(x)
        model.encoder_projection(x)
    model.project(x[:NEAREST_BATCH_SIZE])
    on_manifold(model, x[:2])


def fit(images: np.ndarray) -> None:
    """PCA and the Gaussian."""
    fit_baselines(images, images[:64], images[:64])


PIECES: dict[str, Callable[[np.ndarray], object]] = {
    "a training step of 32 images": train,
    "a rotation": rotate,
    f"evaluation of {BATCH_SIZE} images": evaluate,
    "PCA and the Gaussian": fit,
}


def piece(name: str, size: int, store: str) -> dict[str, float]:
    """What a piece takes, in a separate process."""
    settings = ImageSettings(source="lsun_bedroom", path=store, size=size)
    folder = Path(store).parent / f"pieces-{size}"
    images, *_ = prepare(settings, folder, folder)
    started = time.monotonic()
    PIECES[name](images)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory": memory, "seconds": time.monotonic() - started}


def broken(found: dict[str, Any]) -> list[str]:
    """What does not hold."""
    rows = {**found["runs"], **found["pieces"]}
    too_large = [f"{name} takes more than 24 GiB" for name, row in rows.items()
                 if row["memory"] > LIMIT]  # fmt: skip
    missing = [f"{name} has no report" for name, row in found["runs"].items() if not row["reports"]]
    wanted = {f"{size}, {name}" for size in SIZES for name in (*METHODS, *PIECES)}
    return too_large + missing + [f"{name} is not measured" for name in sorted(wanted - {*rows})]


def page(found: dict[str, Any]) -> str:
    """Write the section."""
    counts = " / ".join(map(str, COUNTS.values()))
    nodes = _table({name: row["nodes"] for name, row in found["runs"].items()})
    pieces = _table(_by_size(found["pieces"]))
    return f"""## Images of 64x64 and 128x128

Synthetic pictures of {LARGEST}x{LARGEST} through both pipelines, `--pipeline=hierarchical` with
`{METHODS["hierarchical"]}` and `--pipeline=joint` with `{METHODS["joint"]}`: {counts} images, a
Glow of one step on each of three levels and width 16, and eight training steps per phase.
All wrote their reports. The table has the peak memory in GB of all processes during each node,
without pages of files.

{nodes}

The default flow (steps 8, 4 and 2, width 64, d = 500) in parts, each in a separate
process: memory in GB, including pages of files.

{pieces}

The memory does not depend on the number of steps or batches. A rotation also stores its probes:
8,000 of them take 0.2 GB at 64 pixels and 0.8 GB at 128.
`training.activation_checkpointing=true` and a smaller `training.batch_size` reduce it.
For images of more than 4,096 numbers, a rotation chooses only the leading 2 d axes.
For more than 6,144, PCA and the Gaussian are fitted to at most 16,384 images with
2,048 leading axes, and are isotropic in the other directions. No matrix of D x D exists at 128.
"""


def _by_size(pieces: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        f"{size}x{size}": {
            name: pieces[key]["memory"] for name in PIECES if (key := f"{size}, {name}") in pieces
        }
        for size in SIZES
    }


def _table(columns: dict[str, dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name in names:
        cells = (
            f"{column[name] / 1e9:.2f}" if name in column else "" for column in columns.values()
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(piece(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
