"""Compare numbers of threads, fixed and chosen by measurement, with busy processes beside them.

    python -m benchmarks.threads                 # about 15 minutes
    python -m benchmarks.threads --seconds 4 --rounds 2 --neighbours 0 1

Each workload runs with each number in turn. The machine must be idle otherwise.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.glows import SHAPE
from submanifold.common import threads
from submanifold.common.threads import Threads, ThreadTuner, use_threads
from submanifold.data.batches import Batches
from submanifold.flows import Glow, initialize
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.training.trainer import Trainer, TrainingSettings

BATCH = 32


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy inside of this context."""
    processes = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


def workloads() -> dict[str, Callable[[], object]]:
    """Units of work of the default Glow on 32 images, by name."""
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow(SHAPE, steps=[8, 4, 2], width=64), 500)])
    rows = np.random.default_rng(0).integers(0, 256, (BATCH, *SHAPE), dtype=np.uint8)
    (x,) = Batches(rows, BATCH)
    initialize(model, x)
    settings = TrainingSettings(
        steps=10**9, batch_size=BATCH, learning_rate=1e-5, muon_lr=1e-5, warmup=0, clip=10.0,
        cooldown_fraction=0.0, ema=0.99, validate_every=1000, precision="auto",
    )  # fmt: skip
    trainer = Trainer(model, penalized_likelihood(), settings)
    penalized = Trainer(model, penalized_likelihood("mse", weight=45.0), settings)

    @torch.no_grad()
    def score() -> None:
        model.log_prob(x)

    return {
        "likelihood step": lambda: trainer.step(x),
        "penalized step": lambda: penalized.step(x),
        "log-density": score,
        "nearest projection": lambda: model.project(x, exact=True),
    }


def units_per_second(work: Callable[[], object], setting: Threads, seconds: float) -> float:
    """Work for some seconds; ``auto`` starts as in a new process."""
    threads._load = threads._Load()
    time.sleep(1)  # a process measures the load while it starts
    with use_threads(setting):
        tuner, units, started = ThreadTuner(), 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or not units:
            with tuner.unit():
                work()
            units += 1
    return units / elapsed


def main() -> None:
    """Print a table for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of a sample")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each")
    parser.add_argument("--neighbours", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    most = torch.get_num_threads()
    choices: list[Threads] = [*sorted({1, most // 2, most}), "auto"]
    print(f"| busy processes | work | {' | '.join(map(str, choices))} | best fixed / auto |")
    print("| --- | --- |" + " --- |" * (len(choices) + 1))
    works = workloads()
    for count in options.neighbours:
        for name, work in works.items():
            rates: dict[Threads, list[float]] = {choice: [] for choice in choices}
            with busy_processes(count):
                for _ in range(options.rounds):
                    for choice in choices:
                        rates[choice].append(units_per_second(work, choice, options.seconds))
            means = {choice: statistics.mean(each) for choice, each in rates.items()}
            ratio = max(means[c] for c in choices if c != "auto") / means["auto"]
            rows = " | ".join(f"{BATCH * mean:.0f}" for mean in means.values())
            print(f"| {count} | {name} | {rows} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
