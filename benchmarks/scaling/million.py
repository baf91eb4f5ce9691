"""A million images: prepared, killed and prepared again, and read by the loader."""

import json
import math
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality import DEFAULT, MUON
from benchmarks.reliability import Project
from benchmarks.scaling.pictures import make_lmdb
from benchmarks.scaling.watch import watch
from submanifold.common.processes import cores
from submanifold.data.batches import Batches
from submanifold.flows import Glow, initialize
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.training.trainer import Trainer, TrainingSettings

SIZE = 32
LIMIT = 1.5e9
SECONDS = 30.0  # of each, in turn
TURNS = ("loader", "training")


def measure(folder: Path, count: int = 1_000_000) -> dict[str, Any]:
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
    moment = random.uniform(0.1, 0.8) * count

    def is_there(said: str) -> bool:
        done = re.findall(r"preparing images: (\d+)", said)
        return bool(done) and int(done[-1]) > moment

    watch(*run, folder=folder / "killed", stop_when=is_there)
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
    settings = TrainingSettings(steps=10**6, warmup=50, cooldown_fraction=0.5, ema=0.99,
                                precision="auto",
                                validate_every=10**6, **MUON)  # fmt: skip
    batches = Batches(array, settings.batch_size)
    initialize(model, batches.at(0))
    trainer = Trainer(model, penalized_likelihood(), settings)
    trainer.step(batches.at(0), batches.generator)
    seconds, cpu = dict.fromkeys(TURNS, 0.0), dict.fromkeys(TURNS, 0.0)
    images, step = dict.fromkeys(TURNS, 0), 0
    while min(seconds.values()) < SECONDS:
        for name in TURNS:
            started, used = time.monotonic(), time.process_time()
            while time.monotonic() - started < 1:
                batch = batches.at(step)
                if name == "training":
                    trainer.step(batch, batches.generator)
                images[name] += len(batch)
                step += 1
            seconds[name] += time.monotonic() - started
            cpu[name] += time.process_time() - used
    return {
        **{name: images[name] / seconds[name] for name in TURNS},
        **{f"{name}_of_cpu": images[name] / cpu[name] for name in TURNS},
    }


def broken(found: dict[str, Any]) -> list[str]:
    """What does not hold."""
    loader = found["loader"]
    return [what for what, holds in {
        "preparation takes 1.5 GB or more": found["memory"] < LIMIT,
        "reading takes 1.5 GB or more": loader["memory"] + loader["file_pages"] < LIMIT,
        "a killed preparation ends with other arrays": found["same"] and found["had"] > 0,
        "the loader is not 20 times as fast": loader["loader"] > 20 * loader["training"],
    }.items() if not holds]  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """Write the section."""
    loader = found["loader"]
    ratio = loader["loader"] / loader["training"]
    rows = {
        "rate of the preparation": f"{found['rate']:,.0f} images/s",
        "duration of the command": f"{found['seconds']:.0f} s, {found['cpu_seconds']:.0f} s of CPU",
        f"memory of all {found['processes']} processes, peak": _memory(found),
        "the same command again (nothing to do)": f"{found['again_seconds']:.0f} s",
        "killed (SIGKILL) at a random moment, and repeated": (
            f"continues after {found['had']:,} images; the arrays have "
            + ("the same hash" if found["same"] else "ANOTHER HASH")
        ),
        "rate of the loader, batches of 32 in random order": f"{loader['loader']:,.0f} images/s",
        "rate of training (the default Glow, likelihood only), alternating with the loader": (
            f"{loader['training']:,.0f} images/s; the loader is {ratio:.0f} times as fast"
        ),
        "images per second of CPU time, loader and training": (
            f"{loader['loader_of_cpu']:,.0f} and {loader['training_of_cpu']:,.0f} images"
        ),
        "memory of the loading and training process": _memory(loader),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""## {found["images"]:,} images of {SIZE}x{SIZE}

A synthetic LMDB of {found["images"]:,} JPEGs ({found["bytes"] / 1e9:.1f} GB) in the layout of LSUN:
`kedro run --pipeline=data --params=dataset=lsun_bedroom,data.path=<folder>`, on {found["cores"]}
cores.

| | |
| --- | --- |
{table}
"""


def _memory(found: dict[str, Any]) -> str:
    memory, pages = found["memory"] / 1e9, found["file_pages"] / 1e9
    return f"{memory:.2f} GB, and {pages:.2f} GB of pages of files"


if __name__ == "__main__":
    print(json.dumps(read(np.load(sys.argv[1], mmap_mode="c"))))
