"""Bits against seconds of training, for this project's Glow and the packages' like it.

    python -m benchmarks.quality --celeba img_align_celeba.zip --fashion-mnist FashionMNIST/raw

Every contender is trained by the same loop on the same batches of 32, with a warm-up, rates that
fall to nothing in the second half, and averaged weights. The packages have Adam, at the learning
rate and with the clip that a sweep on CelebA finds best for each. What the best of them has after
ten minutes, by the weights that are best on validation images, is to be reached. Bits are those of
test images, in float32.

Seconds are steps times what a step takes, which is measured first, all contenders in turn, so that
trainings may share the machine with something else. What is measured is kept, and a benchmark that
was killed goes on. The packages are installed by ``pip install normflows FrEIA
nflows``. Tables and curves go to
``data/08_reporting/quality``.
"""

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.glows import PEERS, SIZES
from benchmarks.results import kept, markdown, over_seeds
from benchmarks.timing import interleave
from submanifold.common.progress import ProgressBar
from submanifold.data.batches import Batches
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.flows import Flow, Glow, initialize
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.training.trainer import Trainer, TrainingSettings

SOURCES: dict[str, dict[str, Any]] = {
    "celeba": {"source": "celeba", "split": "official"},
    "fashion-mnist": {"source": "fashion_mnist", "split": "official", "margin": 2, "channels": 1,
                      "counts": {"valid": 2000, "test": 2000}},
    "photos": {"source": "photos"},
}  # fmt: skip


class Images(NamedTuple):
    """The splits of a data set, uint8 (N, channels, 32, 32)."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def load(name: str, path: str | None, folder: Path) -> Images:
    """Prepare a data set, whose files are at a path, in a folder."""
    settings = ImageSettings.model_validate({**SOURCES[name], "path": path})
    return Images(*prepare(settings, folder, Path(tempfile.gettempdir()))[:3])


SECONDS = 600.0
PACKAGES = tuple(PEERS)
POINTS = 15  # of a package's curve
SWEEP = {"learning_rate": (0.002, 0.005, 0.01), "clip": (None, 1.0)}
SWEEP_STEPS = 800
HORIZONS = (100, 200, 400, 800)  # steps of our default's trainings
DEFAULT = {"steps": [8, 4, 2], "width": 64, "whiten": True}
CPU = torch.device("cpu")
MUON = {"learning_rate": 0.01, "muon_lr": 0.02, "clip": 10.0, "batch_size": 32}


class Package(Flow):
    """A package's flow under this project's interface."""

    axes = 3

    def __init__(self, flow: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.flow, self.event_shape = flow, shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(x)
        return z, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.flow.inverse(z)  # type: ignore[operator]


@dataclass(frozen=True)
class Contender:
    """A flow and how it is trained."""

    name: str  # submanifold, or a package's
    training: dict[str, Any]  # learning rates, clip, and size of batches
    settings: dict[str, Any] = field(default_factory=dict)  # of this project's Glow

    def start(self, images: Images, seed: int, steps: int) -> tuple[Trainer, Batches]:
        """Build it, and set what the first batch sets."""
        shape = images.train.shape[1:]
        torch.manual_seed(seed)
        if self.name in PACKAGES:
            flow: Flow = Package(PEERS[self.name](*SIZES["S"], shape), shape)  # type: ignore[arg-type]
        else:
            flow = Glow(shape, levels=3, **self.settings)
        hierarchy = Hierarchy([Stage(flow, math.prod(shape))])
        settings = TrainingSettings(
            steps=steps, warmup=50, cooldown_fraction=0.5, ema=0.99, validate_every=steps,
            precision="float32" if self.name in PACKAGES else "auto", **self.training,
        )  # fmt: skip
        trainer = Trainer(hierarchy, penalized_likelihood(), settings)
        batches = Batches(images.train, settings.batch_size, seed)
        initialize(hierarchy, batches.at(0)[0])
        trainer.reset_average()
        return trainer, batches

    @property
    def label(self) -> str:
        """A name for files, different for each."""
        text = json.dumps([self.training, self.settings], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@torch.no_grad()
def scores(hierarchy: Hierarchy, images: Images) -> dict[str, float]:
    hierarchy.eval()
    row = {}
    for part in ("valid", "test"):
        batches = Batches(getattr(images, part), 256)
        row[part] = torch.cat([hierarchy.bits_per_dim(x) for x, _ in batches]).mean().item()
    hierarchy.train()
    return row


def train(contender: Contender, images: Images, seed: int, steps: int, points: int) -> list[Any]:
    """Train for some steps; scores of the averaged weights at ``points`` equally spaced steps.

    A training that ends in what is not finite has the scores before that.
    """
    trainer, batches = contender.start(images, seed, steps)
    generator = torch.Generator()
    marks = {round(steps * (n + 1) / points) for n in range(points)}
    rows = []
    with ProgressBar(f"{contender.label}, seed {seed}", "steps", steps, every=60) as meter:
        for step in range(1, steps + 1):
            x, _ = batches.at(step - 1, generator)
            values = trainer.step(x, generator)
            meter.update(1)
            if step in marks:
                if not math.isfinite(values["loss"].item()):
                    break
                trainer.swap_average()
                rows.append({"step": step, **scores(trainer.model, images)})  # type: ignore[arg-type]
                trainer.swap_average()
    return rows


@dataclass
class Bench:
    """What is measured on one data set, a file for each: made when first asked for, then read."""

    folder: Path
    data: str
    images: Images

    def curve(self, contender: Contender, seed: int, steps: int, points: int = 1) -> list[Any]:
        """Scores along one training (:func:`train`)."""
        path = self.folder / self.data / f"{contender.label}-{steps}-{seed}.json"
        return kept(path, partial(train, contender, self.images, seed, steps, points))

    def seconds(self, contenders: Sequence[Contender]) -> dict[str, list[float]]:
        """Seconds of a step by label, all measured in turn: median and quartiles."""

        def measure() -> Any:
            tasks = {}
            for contender in contenders:
                trainer, batches = contender.start(self.images, 0, 10**6)
                generator = torch.Generator()
                batch, _ = batches.at(0, generator)
                tasks[contender.label] = partial(trainer.step, batch, generator)
            return {label: timing[:3] for label, timing in interleave(tasks, 9, CPU).items()}

        key = hashlib.sha256(json.dumps([each.label for each in contenders]).encode())
        return kept(self.folder / self.data / f"seconds-{key.hexdigest()[:8]}.json", measure)

    def sweep(self, package: str) -> list[dict[str, Any]]:
        """Try learning rates and clips for a package: recipes and scores, the best first."""
        tried = []
        for rate, clip in product(*SWEEP.values()):
            recipe = {"muon_lr": None, "learning_rate": rate, "clip": clip, "batch_size": 32}
            curve = self.curve(Contender(package, recipe), 0, SWEEP_STEPS)
            tried.append({"recipe": recipe, **(curve[-1] if curve else {"valid": math.inf})})
        return sorted(tried, key=lambda row: row["valid"])


def chosen(rows: list[Any]) -> float:
    """Test bits of the weights with the best validation bits."""
    return min(rows, key=lambda row: row["valid"])["test"]


def seconds_to(bits: float, seconds: Sequence[float], curve: Sequence[float]) -> float:
    """Seconds at which a falling curve meets some bits, between points by log-time; inf if never.

    A curve that starts below has met them by its first point.
    """
    if curve[0] <= bits:
        return seconds[0]
    for (early, high), (late, low) in pairwise(zip(seconds, curve, strict=True)):
        if high > bits >= low:
            share = (high - bits) / (high - low)
            return early * (late / early) ** share
    return math.inf


OURS = "our default"


def ten_minutes(bench: Bench, sweeps: dict[str, Any], seed: int) -> tuple[Contender, Any]:
    """Train a package for ten minutes: the best on CelebA that does not diverge here.

    Returns the contender, and its curve; ``sweeps`` has the best package first.
    """
    for package, rows in sweeps.items():
        first = Contender(package, rows[0]["recipe"])
        steps = round(SECONDS / bench.seconds([first])[first.label][0])
        for row in rows:
            contender = Contender(package, row["recipe"])
            curve = bench.curve(contender, seed, steps, POINTS)
            if len(curve) == POINTS:
                return contender, curve
    raise SystemExit(f"Every package diverges on {bench.data} with every recipe of its sweep.")


def measure(bench: Bench, sweeps: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Train the best package with one seed, and our default: seconds, and test bits by seed."""
    reference, curve = ten_minutes(bench, sweeps, 0)
    ours = Contender("submanifold", MUON, DEFAULT)
    ends = [[bench.curve(ours, seed, steps)[-1] for steps in HORIZONS] for seed in range(seeds)]
    seconds = bench.seconds([reference, ours])
    return {
        name: {
            "step": seconds[contender.label][0],
            "seconds": [seconds[contender.label][0] * row["step"] for row in curves[0]],
            "bits": [[chosen(rows[: n + 1]) for n in range(len(rows))] for rows in curves],
        }
        for name, contender, curves in (
            (f"{reference.name}, Adam", reference, [curve]), (OURS, ours, ends),
        )
    }  # fmt: skip


def summary(found: dict[str, Any]) -> str:
    """Write one data set's rows: bits at the end, and seconds to the best package's bits."""
    reference = next(iter(found.values()))
    goal, longest = np.mean([curve[-1] for curve in reference["bits"]]), reference["seconds"][-1]
    rows = []
    for name, row in found.items():
        needed = [seconds_to(goal, row["seconds"], curve) for curve in row["bits"]]
        mean = longest if row is reference else float(np.mean(needed))
        reached = math.isfinite(mean)
        rows.append({
            "": name, "step, ms": f"{1e3 * row['step']:.1f}",
            "bits at the end": over_seeds([curve[-1] for curve in row["bits"]], ".3f"),
            "seconds": f"{row['seconds'][-1]:.0f}",
            f"seconds to {goal:.3f} bits": f"{mean:.0f}" if reached else "not reached",
            "share": f"{mean / longest:.3f}" if reached else "",
        })  # fmt: skip
    return markdown(rows)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(found), figsize=(6 * len(found), 4.5), squeeze=False)
    for panel, (data, rows) in zip(axes[0], found.items(), strict=True):
        for name, row in rows.items():
            line = "--" if "Adam" in name else "-"
            for number, curve in enumerate(row["bits"]):
                label = name if number == 0 else None
                panel.plot(row["seconds"], curve, line, marker=".", label=label, lw=1,
                           color=f"C{list(rows).index(name)}")  # fmt: skip
        lowest = min(min(min(curve) for curve in row["bits"]) for row in rows.values())
        panel.set(title=data, xlabel="seconds of training", xscale="log")
        panel.set_ylim(lowest - 0.05, lowest + 1)
    axes[0][0].set_ylabel("bits per dimension, test images")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--celeba", required=True, help="img_align_celeba.zip, or its folder")
    parser.add_argument("--fashion-mnist", required=True, help="the folder of its IDX files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    options = parser.parse_args()
    paths = {"celeba": options.celeba, "fashion-mnist": options.fashion_mnist}
    folder = Path("data/08_reporting/quality")
    benches = {
        name: Bench(folder, name, load(name, paths.get(name), folder / "arrays" / name))
        for name in SOURCES
    }
    sweeps = {name: benches["celeba"].sweep(name) for name in options.packages}
    sweeps = dict(sorted(sweeps.items(), key=lambda sweep: sweep[1][0]["valid"]))
    tried = [
        {"sweep on CelebA": name, **{key: str(row["recipe"][key]) for key in SWEEP},
         "validation bits": f"{row['valid']:.3f}"}
        for name, rows in sweeps.items() for row in rows
    ]  # fmt: skip
    page, found = [markdown(tried)], {}
    for name in SOURCES:
        found[name] = measure(benches[name], sweeps, options.seeds)
        page.append(f"### {name}\n\n{summary(found[name])}")
        print(page[-1], flush=True)
    (folder / "quality.md").write_text("\n".join(page))
    draw(found, folder / "quality.png")


if __name__ == "__main__":
    main()
