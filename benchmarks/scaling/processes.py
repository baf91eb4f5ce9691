"""What processes and parts do to a training: images a second, memory, bytes exchanged."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.glows import SHAPE, SIZES, ours
from benchmarks.quality import MUON
from submanifold.common import distributed
from submanifold.config.schema import LaunchSettings
from submanifold.flows import initialize
from submanifold.flows.fast import kernels
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, ModelSettings, Stage
from submanifold.runs.launch import call
from submanifold.training.phases import PhaseSettings, train_phase

BATCH, DIM, ROUNDS = 128, 500, 3
STEPS = {"S": 60, "M": 30}
AVERAGES = 20
CPU = torch.device("cpu")
GPU_FLOPS, GPU_SHARE = 990e12, 0.2  # an H100's in bfloat16 without sparsity, and what is reached
LAUNCH = 5e-6  # seconds to launch an operator's kernels
LINKS = {"8 GPUs of a machine, NVLink": 300e9, "8 machines, 100 Gbit/s": 10e9}  # bytes a second


def training(size: str, launch: LaunchSettings, recompute: bool = False) -> dict[str, float]:
    """Train a little, by processes of one thread each, and say how fast and in what memory."""
    torch.set_num_threads(1)
    steps, width = SIZES[size]
    flow = {"type": "glow", "levels": 3, "steps": steps, "width": width}
    model = ModelSettings(stages=[{"flow": flow, "dim": DIM}])
    how = {**MUON, "batch_size": BATCH, "steps": STEPS[size], "validate_every": 1000, "warmup": 5,
           "cooldown_fraction": 0.5, "ema": 0.99, "activation_checkpointing": recompute,
           "precision": "auto"}  # fmt: skip
    phase = PhaseSettings(
        stages=(1,), training=how, reconstruction={"penalty": "mse", "weight": 10.0}
    )
    images = np.random.default_rng(0).integers(0, 256, (512, *SHAPE), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = (phase, model, None, images, images[:BATCH], 0, CPU, folder, size,
                     launch.grad_accumulation_steps)  # fmt: skip
        _, history = call(launch, train_phase, *arguments, folder=folder)
    first, last = history["train"][0], history["train"][-1]
    times = [BATCH * row["step"] / row["rows_per_second"] for row in (first, last)]
    who = resource.RUSAGE_CHILDREN if launch.processes > 1 else resource.RUSAGE_SELF
    return {
        "rate": BATCH * (last["step"] - first["step"]) / (times[1] - times[0]),
        "memory": resource.getrusage(who).ru_maxrss * 1024,  # of the largest process
    }


def averaging(size: str) -> list[float]:
    """Seconds that processes take to average as many gradients as a flow has."""
    gradients = [p.detach() for p in ours(*SIZES[size]).parameters()]
    found = []
    for _ in range(AVERAGES):
        distributed.barrier()
        started = time.monotonic()
        distributed.average(gradients)
        found.append(time.monotonic() - started)
    return found


def average_by_two(size: str) -> list[float]:
    """The same by two processes."""
    with tempfile.TemporaryDirectory() as name:
        return call(LaunchSettings(processes=2), _averaging_on, size, CPU, folder=Path(name))


def _averaging_on(size: str, device: torch.device) -> list[float]:
    return averaging(size)


class Calls(TorchDispatchMode):
    """Counts calls of operators, each of which launches a kernel or a few."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def work(size: str) -> tuple[int, float, int]:
    """Parameters of a flow, floating-point operations of a penalized step for an image, calls."""
    model = Hierarchy([Stage(ours(*SIZES[size]), DIM)])  # type: ignore[arg-type]
    x = torch.rand(2, *SHAPE) - 0.5
    initialize(model, x)
    flops, calls = FlopCounterMode(display=False), Calls()
    with patch.object(kernels, "library", lambda: None), calls, flops:  # whose work is not counted
        penalized_likelihood("mse", weight=10.0)(model, x)["loss"].backward()
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, flops.get_total_flops() / len(x), calls.count


def in_turn(configurations: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Measure each configuration once a round, in a separate process."""
    rows = []
    for _ in range(rounds):
        for each in configurations:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scaling.processes", json.dumps(each)],
                env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True,
                text=True,
            )  # fmt: skip
            rows.append({**each, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def measure(folder: Path) -> dict[str, Any]:
    """Measure all; nothing is kept in the folder."""
    both = [{"size": size, "processes": count} for size in STEPS for count in (1, 2)]
    ways = [
        {"size": size, "parts": parts, "activation_checkpointing": recompute}
        for size in STEPS
        for parts, recompute in ((1, False), (2, False), (4, False), (1, True), (4, True))
    ]
    return {
        "speed": in_turn(both, ROUNDS),
        "memory": in_turn(ways, 1),
        "averaging": {size: statistics.median(average_by_two(size)) for size in SIZES},
        "work": {size: work(size) for size in SIZES},
    }


def broken(found: dict[str, Any]) -> list[str]:
    """What does not hold: that two processes are faster, and that parts take less memory."""
    slower = [row["flow"] for row in _speeds(found) if row["median"] < 1.2]
    taken = {(row["size"], row["parts"], row["activation_checkpointing"]): row["memory"]
             for row in found["memory"]}  # fmt: skip
    larger = [size for size in STEPS if taken[size, 4, False] > 0.9 * taken[size, 1, False]]
    return [f"{size}: two processes are not faster" for size in slower] + [
        f"{size}: four parts do not take less memory" for size in larger
    ]


def _speeds(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for size in STEPS:
        one, two = (
            [row["rate"] for row in found["speed"]
             if (row["size"], row["processes"]) == (size, count)]
            for count in (1, 2)
        )  # fmt: skip
        ratios = [many / few for few, many in zip(one, two, strict=True)]
        middle = statistics.median(ratios)
        rows.append({
            "flow": size,
            "one process, images/s": f"{statistics.median(one):.0f}",
            "two processes, images/s": f"{statistics.median(two):.0f}",
            "ratio": f"{middle:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
            "median": middle,
        })  # fmt: skip
    return rows


def _memory(found: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([
        {
            "flow": row["size"], "launch.grad_accumulation_steps": row["parts"],
            "training.activation_checkpointing": row["activation_checkpointing"],
            "memory, GB": f"{row['memory'] / 1e9:.2f}",
            "images/s": f"{row['rate']:.0f}",
        }
        for row in found["memory"]
    ])  # fmt: skip


def _projection(found: dict[str, Any]) -> pd.DataFrame:
    """Bytes exchanged a step against its time, for links and a GPU as stated above."""
    rows = []
    for size, (parameters, flops, calls) in found["work"].items():
        for batch in (32, 256):
            step = max(batch * flops / (GPU_FLOPS * GPU_SHARE), calls * LAUNCH)
            row = {
                "flow": size, "parameters": f"{parameters:,}", "images per GPU": batch,
                "GFLOP per image": f"{flops / 1e9:.1f}", "operators": f"{calls:,}",
                "step": f"{step * 1e3:.0f} ms",
            }  # fmt: skip
            for name, rate in LINKS.items():
                exchange = 2 * 7 / 8 * 4 * parameters / rate
                share = step / (step + exchange)
                row[name] = f"{exchange * 1e3:.2f} ms, {share:.1%}"
            rows.append(row)
    return pd.DataFrame(rows)


def page(found: dict[str, Any]) -> str:
    """Write the section."""
    speeds = pd.DataFrame(_speeds(found)).drop(columns="median")
    averaging = "; ".join(f"{size} {1e3 * each:.1f} ms"
                          for size, each in found["averaging"].items())  # fmt: skip
    links = " and ".join(f"{rate / 1e9:.0f} GB/s" for rate in LINKS.values())
    return f"""## Several processes, and gradient accumulation

`launch.processes=2` compared with one process, each with one thread: penalized steps with batches
of {BATCH} images of 32x32, in {ROUNDS} alternating rounds. The ratio has its range in brackets.
The flows are those of [performance](performance.md).

{speeds.to_markdown(index=False, disable_numparse=True)}

Averaging the gradients of two processes through gloo takes (median of {AVERAGES}): {averaging}.

Peak memory of one process, including 0.4 GB of the program itself:

{_memory(found).to_markdown(index=False, disable_numparse=True)}

**Estimates for 8 GPUs, and for 8 machines** (not measured). Once per step, after the last gradient,
each of n processes sends and receives 2 (n - 1) / n times 4 bytes per parameter. The estimates
assume that a step takes the longer of two times: its arithmetic at {GPU_SHARE:.0%} of
{GPU_FLOPS / 1e12:.0f} TFLOP/s, or its operators at {LAUNCH * 1e6:.0f} microseconds each. Links
have {links}. The last columns are the time of the exchange, and the fraction of the time that is
left for computing.

{_projection(found).to_markdown(index=False, disable_numparse=True)}

Under these assumptions, launches of operators limit a step, not arithmetic: 256 images take as long
as 32. Eight GPUs therefore pay off only with larger batches. The largest flow with its gradients,
moments and averages takes {16 * found["work"]["P"][0] / 1e9:.1f} GB. Sharding by FSDP2 is tested
(`tests/training/test_sharded.py`), but not a setting, because none of these flows needs it.
"""


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    size, recompute = given.pop("size"), given.pop("activation_checkpointing", False)
    print(json.dumps(training(size, LaunchSettings(**given), recompute)))
