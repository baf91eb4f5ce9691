"""Time a training step, sampling, and memory, for this and other implementations of Glow.

    python -m benchmarks.training_step                      # sizes S, M and P on the CPU
    python -m benchmarks.training_step --sizes S --rounds 20
    python -m benchmarks.training_step --device cuda

All implementations have the same architecture (benchmarks/glows.py) and are timed in turn in one
process; samples that another process disturbed are dropped. Packages that are not installed are
left out: ``pip install normflows FrEIA nflows``. The table goes to the terminal, and with
``--json FILE`` to a file.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.glows import PEERS, SHAPE, SIZES, Model, ours
from benchmarks.timing import Timing, interleave, synchronize
from submanifold.common.device import autocast
from submanifold.flows import set_activation_checkpointing
from submanifold.losses import Objective, penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.training.trainer import Trainer, TrainingSettings

DIM = 1000
RATE = 1e-5
BATCHES = {"S": 64, "M": 64, "P": 16}
GOALS = {"S": 2.5, "M": 3.3, "P": 4.5}  # times the fastest peer's PR step
TASKS = ("NLL step", "PR step", "64 samples", "64 scores")
OURS = ("submanifold", "submanifold, checkpointing", "submanifold, float32")


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
        """Decode u with v = 0."""
        return self.flow.inverse(torch.cat([u, u.new_zeros(len(u), 3072 - DIM)], 1))

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """Log-densities, but for a constant."""
        z, log_det = self.flow(x)
        return log_det - 0.5 * z.square().sum(1)


class Ours(nn.Module):
    """This project's flow, by the steps that train it: clipped, and averaged, too."""

    def __init__(self, flow: Model, precision: str, device: torch.device):
        super().__init__()
        self.hierarchy = Hierarchy([Stage(flow, DIM)]).to(device)  # type: ignore[arg-type]
        nll, pr = penalized_likelihood(), penalized_likelihood("huber", weight=300.0, delta=0.1)
        self.trainers = [trainer_of(self.hierarchy, each, precision) for each in (nll, pr)]

    def step(self, x: Tensor, penalized: bool) -> None:
        """Make a step of training."""
        self.trainers[penalized].step(x)

    @torch.no_grad()
    def sample(self, u: Tensor) -> Tensor:
        """Decode u with v = 0."""
        with autocast(u.device, self.trainers[0].precision):
            return self.hierarchy.decode(u)

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """Log-densities."""
        with autocast(x.device, self.trainers[0].precision):
            return self.hierarchy.log_prob(x)


def trainer_of(hierarchy: Hierarchy, objective: Objective, precision: str) -> Trainer:
    """Build what makes the steps of a training."""
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
    return Trainer(hierarchy, objective, settings)


def build(name: str, size: str, device: torch.device) -> Ours | Peer:
    """Build a contender; raises ImportError if its package is not installed."""
    torch.manual_seed(0)
    if name in OURS:
        flow = ours(*SIZES[size])
        set_activation_checkpointing(flow, name.endswith("activation_checkpointing"))  # type: ignore[arg-type]
        return Ours(flow, "float32" if name.endswith("float32") else "auto", device)
    return Peer(PEERS[name](*SIZES[size]), device)


def tasks_of(
    model: Ours | Peer, batch: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Make what is timed of a contender."""
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


def peak_memory(name: str, size: str, batch: int, device: torch.device) -> float:
    """Memory of a PR step in MB, without weights, gradients and optimizer state."""
    model = build(name, size, device)
    x = torch.rand(batch, *SHAPE, device=device) - 0.5
    model.step(x[:1], penalized=True)  # what is set up once
    held = _peak_memory(device, reset=True)
    model.step(x, penalized=True)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    return (_peak_memory(device) - held - gradients) / 2**20


def _peak_memory(device: torch.device, reset: bool = False) -> int:
    """Most bytes held, since the last call that asked for a reset."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def measure(
    size: str, names: list[str], batch: int, rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Time contenders of one size, task by task, and ask for the memory of each."""
    found: dict[str, dict[str, Any]] = {}
    tasks = {}
    for name in names:
        try:
            tasks[name] = tasks_of(build(name, size, device), batch, device)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found[name] = {}
    for task in TASKS:
        chosen = {name: tasks[name][task] for name in found}
        for name, timing in interleave(chosen, rounds, device).items():
            found[name][task] = timing
    for name in found:
        command = [sys.executable, "-m", "benchmarks.training_step", "--memory-of", name]
        command += ["--sizes", size, "--batch", str(batch), "--device", str(device)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name]["memory"] = float(out.stdout.split()[-1])
    return found


def ceilings(device: torch.device) -> dict[str, float]:
    """Floating point operations a second, in 1e9, of products and of convolutions."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
        conv = (
            nn.Conv2d(512, 512, 3, padding=1)
            .to(device, dtype)
            .to(memory_format=torch.channels_last)
        )
        x = torch.randn(16, 512, 16, 16, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

        def convolve(conv: nn.Module = conv, x: Tensor = x) -> None:
            conv(x).sum().backward()

        times = interleave({"product": partial(torch.mm, a, b), "conv": convolve}, 5, device)
        found[f"{name} product"] = 2 * 2048**3 / times["product"].median / 1e9
        found[f"{name} convolution"] = 3 * 2 * 16 * 256 * 512 * 512 * 9 / times["conv"].median / 1e9
    return found


def flops(size: str) -> float:
    """Floating point operations of an NLL step for one image, in 1e9."""
    steps, width = SIZES[size]
    total = 0
    for channels, side in ((12, 16), (24, 8), (48, 4)):
        weights = 9 * channels // 2 * width + width**2 + 9 * width * channels
        total += steps * side**2 * weights
    return 3 * 2 * total / 1e9


def table(size: str, batch: int, found: dict[str, dict[str, Any]]) -> str:
    """Write the timings of one size: milliseconds and quartiles, ratios, memory."""
    peers = [name for name in found if name not in (*OURS, "plain")] or list(found)
    best = {task: min(found[name][task].median for name in peers) for task in TASKS}
    lines = [
        f"### {size}: 3x{SIZES[size][0]} steps, width {SIZES[size][1]}, batch {batch}",
        "",
        f"| | {' | '.join(f'{task}, ms' for task in TASKS)} | PR step, GFLOP/s | memory, MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found.items():
        cells = [name]
        for task in TASKS:
            timing: Timing = row[task]
            ms = [1e3 * value for value in timing[:3]]
            cells.append(
                f"{ms[0]:.4g} [{ms[1]:.4g}, {ms[2]:.4g}], {best[task] / timing.median:.2f}x"
            )
        speed = 2 * flops(size) * batch / row["PR step"].median
        cells += [f"{speed:.0f}", f"{row['memory']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    goal = f"the goal for the PR step is {GOALS[size]}x"
    lines += ["", f"Ratios to the fastest package, if there is one; {goal}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    everyone = [*OURS, *PEERS]
    parser.add_argument("--only", nargs="+", choices=everyone, default=everyone)
    parser.add_argument("--batch", type=int, help="instead of 64, and 16 for P on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = options.device
    if options.memory_of:
        print(peak_memory(options.memory_of, options.sizes[0], options.batch, device))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    found: dict[str, Any] = {"machine": machine, "ceilings": ceilings(device), "sizes": {}}
    print(f"{machine}, on {device}; GFLOP/s at most:")
    print("".join(f"  {name} {value:.0f}\n" for name, value in found["ceilings"].items()))
    for size in options.sizes:
        batch = options.batch or (BATCHES[size] if device.type == "cpu" else 64)
        rows = measure(size, options.only, batch, options.rounds, device)
        print(table(size, batch, rows), flush=True)
        found["sizes"][size] = {"batch": batch, "rows": rows}
        synchronize(device)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, default=lambda t: t._asdict()))


if __name__ == "__main__":
    main()
