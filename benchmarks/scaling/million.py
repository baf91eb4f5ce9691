"""A million images: prepared, killed and prepared again, and read by the loader."""

import json
import math
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality import DEFAULT, MUON
from benchmarks.reliability import Project
from benchmarks.scaling.pictures import make_lmdb
from benchmarks.scaling.watch import watch
from submanifold.data.batches import Batches
from submanifold.data.decoding import cores
from submanifold.flows import Glow, initialize
from submanifold.manifold import Hierarchy, Stage, penalized_likelihood
from submanifold.training.trainer import Trainer, TrainingSettings

SIZE = 32
SECONDS = 30.0  # of the loader and of training, in turn


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Prepare pictures in an LMDB by the real pipeline, twice, and read them."""
    store = folder / f"lmdb-{count}"
    if not store.exists():
        shutil.rmtree(making := folder / "making", ignore_errors=True)
        make_lmdb(making, count, SIZE)
        making.rename(store)
    run = ["-m", "kedro", "run", "--pipeline=data",
           f"--params=dataset=lsun_bedroom,data.path={store}"]  # fmt: skip
    for name in ("whole", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
        Project.make(folder / name)
    whole = watch(*run, folder=folder / "whole")
    manifest = _manifest(folder / "whole")
    again = watch(*run, folder=folder / "whole")
    began = whole.seconds - manifest["seconds"]
    killed_after = began + random.uniform(0.1, 0.8) * manifest["seconds"]
    watch(*run, folder=folder / "killed", stop_after=killed_after)
    resumed = watch(*run, folder=folder / "killed")
    had = re.search(r"going on after (\d+) images", " ".join(resumed.output.split()))
    (array,) = (folder / "whole").glob("data/03_primary/*/train.npy")
    loader = watch("-m", "benchmarks.scaling.million", str(array))
    return {
        "images": count,
        "bytes": (store / "data.mdb").stat().st_size,
        "cores": cores(),
        "rate": count / manifest["seconds"],
        "seconds": whole.seconds,
        "cpu_seconds": whole.cpu_seconds,
        "memory": whole.memory,
        "file_pages": whole.file_pages,
        "processes": whole.processes,
        "again_seconds": again.seconds,
        "killed_after": killed_after,
        "had": int(had[1]) if had else 0,
        "same": _manifest(folder / "killed")["hash"] == manifest["hash"],
        "loader": {
            **json.loads(loader.output.splitlines()[-1]),
            "memory": loader.memory,
            "file_pages": loader.file_pages,
        },
    }


def _manifest(project: Path) -> dict[str, Any]:
    (path,) = project.glob("data/03_primary/*/manifest.json")
    return json.loads(path.read_text())


def read(array: np.ndarray) -> dict[str, float]:
    """Images a second that the loader gives, and that training takes, a little of each in turn."""
    torch.manual_seed(0)
    flow = Glow(array.shape[1:], 3, **DEFAULT)
    model = Hierarchy([Stage(flow, math.prod(array.shape[1:]))])
    settings = TrainingSettings(steps=10**6, warmup=50, decay=0.5, ema=0.99, precision="auto",
                                validate_every=10**6, **MUON)  # fmt: skip
    batches = Batches(array, settings.batch_size)
    initialize(model, batches.at(0))
    trainer = Trainer(model, penalized_likelihood(), settings)
    trainer.step(batches.at(0), batches.generator)
    seconds, images, step = (
        {"loader": 0.0, "training": 0.0},
        dict.fromkeys(("loader", "training"), 0),
        0,
    )
    while min(seconds.values()) < SECONDS:
        for name in seconds:
            started = time.monotonic()
            while time.monotonic() - started < 1:
                batch = batches.at(step)
                if name == "training":
                    trainer.step(batch, batches.generator)
                images[name] += len(batch)
                step += 1
            seconds[name] += time.monotonic() - started
    return {name: images[name] / seconds[name] for name in seconds}


def page(found: dict[str, Any]) -> str:
    """Write the section."""
    loader = found["loader"]
    ratio = loader["loader"] / loader["training"]
    return f"""## {found["images"]:,} images of {SIZE}x{SIZE}

A synthetic LMDB of {found["images"]:,} JPEGs ({found["bytes"] / 1e9:.1f} GB), laid out as LSUN's:
`kedro run --pipeline=data --params=dataset=lsun_bedroom,data.path=<folder>`, on {found["cores"]}
cores.

| | |
| --- | --- |
| rate | {found["rate"]:,.0f} images/s; {found["seconds"]:.0f} s by the clock, {found["cpu_seconds"]:.0f} s of CPU |
| memory of all {found["processes"]} processes together, at most | {found["memory"] / 1e9:.2f} GB (and {found["file_pages"] / 1e9:.2f} GB of files' pages, most of them the LMDB's) |
| the same command again, which finds it done | {again(found)} |
| killed (SIGKILL) after {found["killed_after"]:.0f} s, and given again | goes on after {found["had"]:,} images; the arrays have {"the same hash" if found["same"] else "ANOTHER HASH"} |
| the loader, batches of 32 in random order | {loader["loader"]:,.0f} images/s |
| training takes (the default Glow, likelihood alone), in turn with it | {loader["training"]:,.0f} images/s: the loader gives {ratio:.0f} times as many |
| memory of the process that loads and trains | {loader["memory"] / 1e9:.2f} GB (and {loader["file_pages"] / 1e9:.2f} GB of files' pages) |
"""


def again(found: dict[str, Any]) -> str:
    return f"{found['again_seconds']:.0f} s"


if __name__ == "__main__":
    import sys

    print(json.dumps(read(np.load(sys.argv[1], mmap_mode="c"))))
