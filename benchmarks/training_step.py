"""Time a training step and sampling, for this and other implementations of Glow.

    python -m benchmarks.training_step                      # sizes S, M and P on the CPU
    python -m benchmarks.training_step --sizes S --rounds 20
    python -m benchmarks.training_step --device cuda
    python -m benchmarks.training_step --save               # the new baseline.json

All implementations have the same architecture (benchmarks/glows.py) and are timed in turn in one
process; samples that another process disturbed are dropped. Packages that are not installed are
left out: ``pip install normflows FrEIA nflows``.
"""

import argparse
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.glows import PEERS, SHAPE, SIZES, Model, ours
from benchmarks.results import markdown
from benchmarks.timing import interleave
from submanifold.common.device import autocast
from submanifold.common.files import read_json, write_json
from submanifold.losses import Loss
from submanifold.models import Hierarchy, Stage
from submanifold.training import Phase, Trainer, TrainingSettings

DIM = 1000
RATE = 1e-5
TASKS = ("NLL step", "PR step", "64 samples", "64 scores")
BASELINE = Path(__file__).parent / "baseline.json"  # ratios by kind of processor and size
GFLOP = {"S": (0.147, 0.295), "M": (0.721, 1.445), "P": (24.09, 48.19)}  # of both steps, an image
GROUPS = {  # of a profile's operators, by parts of their names
    "coupling networks": "^Steps",
    "optimizer and average of the weights": "Optimizer|foreach|lerp|bmm|baddbmm|adam",
    "first convolutions": "convolution",
    "copies": "copy_|cat|empty|clone|fill_|zero_|pixel_|contiguous",
}
OURS = ("submanifold", "submanifold, float32")


class Peer(nn.Module):
    """A peer's flow with what the benchmark calls: a step with Adam, and its samples."""

    def __init__(self, flow: Model, device: torch.device):
        super().__init__()
        self.flow = flow.to(device)
        fused = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.parameters(), lr=RATE, fused=fused)

    def step(self, x: Tensor, penalized: bool) -> None:
        """Lower the loss of a batch; Huber's penalty of what is left of it with v = 0."""
        z, log_det = self.flow(x)
        log_prob = log_det - 0.5 * z.square().sum(1)
        loss = -log_prob.mean() / (z.shape[1] * 0.6931)
        if penalized:
            kept = torch.cat([z[:, :DIM], torch.zeros_like(z[:, DIM:])], 1)
            loss = loss + 300 * nn.functional.huber_loss(self.flow.inverse(kept), x, delta=0.1)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def sample(self, u: Tensor) -> Tensor:
        return self.flow.inverse(torch.cat([u, u.new_zeros(len(u), 3072 - DIM)], 1))

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        z, log_det = self.flow(x)
        return log_det - 0.5 * z.square().sum(1)


class Ours(nn.Module):
    """This project's flow, by the steps that train it: clipped, and averaged, too."""

    def __init__(self, flow: Model, precision: str, device: torch.device):
        super().__init__()
        self.hierarchy = Hierarchy([Stage(flow, DIM)]).to(device)  # type: ignore[arg-type]
        nll, pr = Loss(), Loss(reconstruction={"penalty": "huber", "weight": 300.0, "delta": 0.1})
        self.trainers = [trainer_of(self.hierarchy, loss, precision) for loss in (nll, pr)]

    def step(self, x: Tensor, penalized: bool) -> None:
        self.trainers[penalized].step(x)

    @torch.no_grad()
    def sample(self, u: Tensor) -> Tensor:
        with autocast(u.device, self.trainers[0].precision):
            return self.hierarchy.decode(u)

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        with autocast(x.device, self.trainers[0].precision):
            return self.hierarchy.log_prob(x)


def trainer_of(hierarchy: Hierarchy, loss: Loss, precision: str) -> Trainer:
    settings = TrainingSettings(
        steps=10**9,
        batch_size=64,
        learning_rate=RATE,
        warmup=0,
        cooldown_fraction=0.0,
        muon_lr=RATE,
        clip=None,
        ema=0.99,
        validate_every=1000,
        precision=precision,
    )
    return Trainer(Phase(hierarchy, loss, settings))


def build(name: str, size: str, device: torch.device) -> Ours | Peer:
    """Build a contender; raises ImportError if its package is not installed."""
    torch.manual_seed(0)
    if name in OURS:
        flow = ours(*SIZES[size])
        return Ours(flow, "float32" if name.endswith("float32") else "auto", device)
    return Peer(PEERS[name](*SIZES[size]), device)


def tasks_of(
    model: Ours | Peer, batch: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(batch, *SHAPE, generator=generator) - 0.5).to(device)
    u = torch.randn(64, DIM, generator=generator).to(device)
    images = (torch.rand(64, *SHAPE, generator=generator) - 0.5).to(device)
    timed = (
        partial(model.step, x, penalized=False),
        partial(model.step, x, penalized=True),
        partial(model.sample, u),
        partial(model.score, images),
    )
    return dict(zip(TASKS, timed, strict=True))


def measure(
    size: str, names: list[str], batch: int, rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Time contenders of one size, task by task."""
    tasks = {}
    for name in names:
        try:
            tasks[name] = tasks_of(build(name, size, device), batch, device)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    timings: dict[str, dict[str, Any]] = {name: {"batch": batch} for name in tasks}
    for task in TASKS:
        chosen = {name: of_name[task] for name, of_name in tasks.items()}
        for name, timing in interleave(chosen, rounds, device).items():
            timings[name][task] = timing
    return timings


def ratios(timings: dict[str, dict[str, Any]], name: str) -> dict[str, float]:
    """Return how many times as fast as the fastest package a contender is, by task."""
    peers = [peer for peer in timings if peer not in OURS] or OURS[:1]
    best = {task: min(timings[peer][task].median for peer in peers) for task in TASKS}
    return {task: round(best[task] / timings[name][task].median, 2) for task in TASKS}


def table(size: str, timings: dict[str, dict[str, Any]], baseline: dict[str, float]) -> str:
    """Write the timings of one size: milliseconds and quartiles, ratios, and the baseline's."""
    rows = []
    for name, measured in timings.items():
        row = {f"size {size}, batch {measured['batch']}": name}
        for task, ratio in ratios(timings, name).items():
            median, low, high = (1e3 * value for value in measured[task][:3])
            row[f"{task}, ms"] = f"{median:.4g} [{low:.4g}, {high:.4g}], {ratio:.2f}x"
        rows.append(row)
    if baseline:
        first = {f"size {size}, batch {timings[OURS[0]]['batch']}": f"{OURS[0]}, baseline"}
        rows.append(first | {f"{task}, ms": f"{ratio:.2f}x" for task, ratio in baseline.items()})
    return f"{markdown(rows)}\nRatios to the fastest package, if there is one.\n"


def profile(size: str, batch: int) -> str:
    """Write where a step on one thread spends its time, and the arithmetic that it reaches."""
    torch.set_num_threads(1)
    tasks = tasks_of(build(OURS[0], size, torch.device("cpu")), batch, torch.device("cpu"))
    products = torch.randn(2, 1024, 1024)
    peak = 2 * 1024**3 / min(_process_seconds(lambda: products[0] @ products[1], 20)) / 1e9
    rows = []
    for task, gflop in zip(TASKS, GFLOP[size], strict=False):
        tasks[task]()
        seconds = min(_process_seconds(tasks[task], 5))
        with torch.profiler.profile() as profiler:
            tasks[task]()
        events = profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        times = dict.fromkeys([*GROUPS, "other"], 0.0)
        for event in events:
            groups = (name for name, part in GROUPS.items() if re.search(part, event.key))
            times[next(groups, "other")] += event.self_cpu_time_total / total
        shares = {group: f"{share:.0%}" for group, share in times.items()}
        speed = gflop * batch / seconds
        rows.append(
            {
                f"size {size}, batch {batch}": task,
                "ms": f"{1e3 * seconds:.0f}",
                **shares,
                "GFLOP/s": f"{speed:.0f}",
                "of a product of matrices": f"{speed / peak:.0%}",
            }
        )
    return markdown(rows)


def _process_seconds(task: Callable[[], object], rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        task()
        seconds.append(time.process_time() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    everyone = [*OURS, *PEERS]
    parser.add_argument(
        "--only", nargs="+", choices=everyone[1:], default=everyone[1:], help="compare with these"
    )
    parser.add_argument("--batch", type=int, help="instead of 64, and 16 for P on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--profile", action="store_true", help="show where our steps' time goes")
    parser.add_argument("--save", action="store_true", help=f"write {BASELINE.name}")
    options = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    machine = capability if options.device.type == "cpu" else torch.cuda.get_device_name()
    baselines = read_json(BASELINE) or {}
    baseline = baselines.setdefault(machine, {})
    print(f"{platform.machine()}, {os.cpu_count()} cores, {capability}, torch {torch.__version__}")
    for size in options.sizes:
        batch = options.batch or (16 if size == "P" and options.device.type == "cpu" else 64)
        if options.profile:
            print(profile(size, batch), flush=True)
            continue
        timings = measure(size, [OURS[0], *options.only], batch, options.rounds, options.device)
        print(table(size, timings, baseline.get(size, {})), flush=True)
        baseline[size] = ratios(timings, OURS[0])
    if options.save:
        write_json(BASELINE, baselines)


if __name__ == "__main__":
    main()
