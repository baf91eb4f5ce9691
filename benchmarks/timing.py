"""Time several things in turn, and drop samples that something else on the machine disturbed."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

BUSY = 0.05  # share of the machine that others may use during a sample
SAMPLE = 0.3  # seconds that a sample takes at least, so that the kernel's ticks can tell
TICKS = os.sysconf("SC_CLK_TCK")


class Timing(NamedTuple):
    """Seconds of one call: median and quartiles of the samples."""

    median: float
    low: float
    high: float


def interleave(
    tasks: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, Timing]:
    """Time each task by name once a round, after two calls to warm up.

    ``rounds`` undisturbed samples of each are wanted, and at most twice as many taken. Where nearly
    all were disturbed, the timing is of all samples.
    """
    calls = {name: _calls(task, device) for name, task in tasks.items()}
    quiet: dict[str, list[float]] = {name: [] for name in tasks}
    disturbed: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(2 * rounds):
        for name, task in tasks.items():
            if len(quiet[name]) < rounds:
                seconds, others = _sample(task, calls[name], device)
                (quiet if others < BUSY else disturbed)[name].append(seconds)
    used = {
        name: quiet[name] if len(quiet[name]) >= 3 else quiet[name] + disturbed[name]
        for name in tasks
    }
    return {name: _quartiles(samples) for name, samples in used.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _calls(task: Callable[[], object], device: torch.device) -> int:
    task()
    task()
    synchronize(device)
    started = time.perf_counter()
    task()
    synchronize(device)
    return max(1, round(SAMPLE / (time.perf_counter() - started)))


def _sample(task: Callable[[], object], calls: int, device: torch.device) -> tuple[float, float]:
    before, own, started = _busy(), time.process_time(), time.perf_counter()
    for _ in range(calls):
        task()
    synchronize(device)
    seconds = time.perf_counter() - started
    others = (_busy() - before) - (time.process_time() - own)
    return seconds / calls, others / (seconds * (os.cpu_count() or 1))


def _busy() -> float:
    """Seconds that the processors have worked, or were taken from this machine by its host."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return time.process_time()
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def _quartiles(samples: list[float]) -> Timing:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75]).tolist()
    return Timing(median, low, high)
