"""Processor time until a Glow has a given density, beside three packages.

    pip install normflows FrEIA nflows
    OMP_NUM_THREADS=1 python -m benchmarks.time_to_bits digits photos

Everyone trains the same Glow of size S (benchmarks/glows.py) on batches of 32 dequantized images,
on one thread, until 256 validation images have the goal in bits per dimension. The packages use
Adam with the best of three rates, a gradient of norm 1 at most, and data-dependent initialization;
rates are compared after a part of the time. Ours uses the default optimizer with the best of three
numbers of steps, and averaged weights, as it trains. Time for validations is not counted.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.glows import PEERS, SIZES, Model, ours
from submanifold.config.loader import load_configuration
from submanifold.config.project import PACKAGED_CONF
from submanifold.data.batches import Batches
from submanifold.data.prepare import prepare
from submanifold.flows import initialize
from submanifold.losses import Loss
from submanifold.models import Hierarchy, Stage
from submanifold.models.model import bits_per_dim
from submanifold.models.stage import standard_normal_log_prob
from submanifold.training.phase import Phase, TrainingSettings
from submanifold.training.trainer import Trainer

GOALS = {"digits": 1.40, "photos": 3.60}
RATES = (0.001, 0.003, 0.01)
STEPS = (300, 600, 1200)
BATCH_SIZE, VALIDATED, EVERY = 32, 256, 25


def bits(flow: Model, batches: Batches) -> float:
    """Mean bits per dimension of a flow that maps x to (z, log_det)."""
    with torch.no_grad():
        values = []
        for x, _ in batches:
            z, log_det = flow(x)
            values.append(standard_normal_log_prob(z) + log_det)
        return float(bits_per_dim(torch.cat(values), x[0].numel(), 8).mean())


def initialize_freia(flow: Model, x: Tensor) -> None:
    """Set the global affine maps of FrEIA's blocks from a batch; others do it themselves."""
    for level, blocks in enumerate(flow.levels, 1):
        x = F.pixel_unshuffle(x, 2)
        for block in blocks:
            with torch.no_grad():
                block.global_scale.fill_(math.log(math.expm1(10.0)))  # a scale of 1
                block.global_offset.zero_()
                z = block([x])[0][0]
                back = torch.einsum("bchw,cd->bdhw", z, block.w_perm[:, :, 0, 0])
                std, mean = (f((0, 2, 3)).view(1, -1, 1, 1) for f in (back.std, back.mean))
                block.global_scale.copy_((10 / std).expm1().log())
                block.global_offset.copy_(-mean / std)
                x = block([x])[0][0]
        if level < len(flow.levels):
            x = x.chunk(2, 1)[0]


def train_peer(
    name: str, rate: float, shape: tuple[int, int, int], train: Batches, valid: Batches
) -> Iterator[tuple[float, int, float]]:
    """Train a package's Glow; yields processor seconds, steps and validation bits."""
    torch.manual_seed(0)
    flow = PEERS[name](*SIZES["S"], shape)
    if name == "FrEIA":
        initialize_freia(flow, train.at(0)[0])
    optimizer = torch.optim.Adam(flow.parameters(), rate)
    seconds, step = 0.0, 0
    while True:
        started = time.process_time()
        for _ in range(EVERY):
            x, _ = train.at(step)
            z, log_det = flow(x)
            loss = bits_per_dim(standard_normal_log_prob(z) + log_det, x[0].numel(), 8).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            step += 1
        seconds += time.process_time() - started
        yield seconds, step, bits(flow, valid)


def train_ours(
    steps: int, shape: tuple[int, int, int], train: Batches, valid: Batches
) -> Iterator[tuple[float, int, float]]:
    """Train ours for a number of steps, as a phase does; yields the same."""
    torch.manual_seed(0)
    flow = ours(*SIZES["S"], shape)
    model = Hierarchy([Stage(flow, flow.latent_dim)])
    trainer = Trainer(Phase(model, Loss(), TrainingSettings(steps=steps)))
    generator = torch.Generator()
    started = time.process_time()
    initialize(model, train.at(0)[0])
    trainer.reset_average()
    seconds = time.process_time() - started
    while trainer.state.step < steps:
        started = time.process_time()
        for _ in range(EVERY):
            x, _ = train.at(trainer.state.step, generator)
            trainer.step(x, generator)
        seconds += time.process_time() - started
        trainer.swap_average()
        yield seconds, trainer.state.step, bits(flow, valid)
        trainer.swap_average()


def first_below(
    curve: Iterator[tuple[float, int, float]], goal: float, longest: float
) -> tuple[list[tuple[float, int, float]], bool]:
    """Advance a training until the goal or a number of seconds; returns its curve."""
    rows = []
    for row in curve:
        rows.append(row)
        if row[2] <= goal or row[0] > longest:
            break
    return rows, bool(rows) and rows[-1][2] <= goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("datasets", nargs="+", choices=GOALS)
    parser.add_argument("--packages", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--longest", type=float, default=400.0, help="processor seconds")
    parser.add_argument("--compared", type=float, default=60.0, help="seconds to choose a rate")
    parser.add_argument("--csv", type=Path, default=Path("time-to-bits.csv"))
    parser.add_argument("--data", type=Path, default=Path("data/time-to-bits"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, object]] = []

    def report(dataset: str, name: str, setting: str, row: tuple[float, int, float]) -> None:
        seconds, step, value = row
        results.append(
            {
                "dataset": dataset,
                "package": name,
                "setting": setting,
                "goal": GOALS[dataset],
                "seconds": round(seconds, 1),
                "steps": step,
                "bits": round(value, 4),
            }
        )
        print(results[-1], flush=True)
        pd.DataFrame(results).to_csv(options.csv, index=False)

    for dataset in options.datasets:
        settings = load_configuration(PACKAGED_CONF, {"dataset": dataset}).experiment.data
        arrays = prepare(settings, options.data / dataset, options.data)[:2]
        train = Batches(arrays[0], BATCH_SIZE)
        valid = Batches(arrays[1][:VALIDATED], VALIDATED, seed=1)
        shape, goal = settings.event_shape, GOALS[dataset]
        for steps in STEPS:
            rows, reached = first_below(
                train_ours(steps, shape, train, valid), goal, options.longest
            )
            report(dataset, "submanifold", f"{steps} steps", rows[-1])
            if reached:
                break
        for name in options.packages:
            curves = {rate: train_peer(name, rate, shape, train, valid) for rate in RATES}
            lasts = {}
            for rate, curve in curves.items():
                rows, _ = first_below(curve, goal, options.compared)
                lasts[rate] = rows[-1]
                report(dataset, name, f"rate {rate}", rows[-1])
            finite = {rate: row for rate, row in lasts.items() if math.isfinite(row[2])}
            best = min(finite, key=lambda rate: finite[rate][2])
            if finite[best][2] > goal:
                rows, _ = first_below(curves[best], goal, options.longest)
                report(dataset, name, f"rate {best}, continued", rows[-1])


if __name__ == "__main__":
    main()
