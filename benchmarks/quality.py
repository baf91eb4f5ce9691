"""Bits against seconds of training, for this project's Glow and the packages' like it.

    python -m benchmarks.quality --celeba img_align_celeba.zip --fashion-mnist FashionMNIST/raw

Every contender is trained by the same loop on the same batches of 32, with a warm-up, rates that
fall to nothing in the second half, and averaged weights. The packages have Adam, at the learning
rate and with the clip that a sweep on CelebA finds best for each. What the best of them has after
ten minutes, by the weights that are best on validation images, is to be reached. Bits are those of
test images, in float32.

Seconds are steps times what a step takes, which is measured first, all contenders in turn, so that
trainings may share the machine with something else. What is measured is kept in ``--folder``, and a
benchmark that was killed goes on. The packages are installed by ``pip install normflows FrEIA
nflows``. Tables go to ``<folder>/quality.md``, curves to ``<folder>/quality.png``.
"""

import argparse
import gzip
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

from benchmarks.glows import PEERS, SIZES
from benchmarks.timing import interleave
from submanifold.common.files import read_json, write_json
from submanifold.common.progress import ProgressBar
from submanifold.data.batches import Batches
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.flows import Flow, Glow, initialize
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.training.optimizers import Muon, optimizers_for
from submanifold.training.trainer import Trainer, TrainingSettings

NAMES = ("celeba", "fashion-mnist", "photos")
HELD_OUT = 2000  # images of Fashion-MNIST, whose other splits are larger than they need be


class Images(NamedTuple):
    """The splits of a data set, uint8 (N, channels, 32, 32)."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def add_options(parser: argparse.ArgumentParser) -> None:
    """Let the user say where the data sets are."""
    parser.add_argument("--data", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--celeba", help="img_align_celeba.zip, or its folder")
    parser.add_argument("--fashion-mnist", help="the folder of its IDX files")
    where = Path("data/08_reporting/quality")
    kept = "where results are kept; what is there is not made again"
    parser.add_argument("--folder", type=Path, default=where, help=kept)


def load(name: str, options: argparse.Namespace) -> Images:
    """Load a data set.

    Raises:
        SystemExit: The user has not said where it is.
    """
    if name == "fashion-mnist":
        return _fashion_mnist(_given(options.fashion_mnist, "--fashion-mnist"))
    settings: dict[str, str] = {"source": "photos"}
    if name == "celeba":
        path = _given(options.celeba, "--celeba")
        settings = {"source": "celeba", "path": path, "split": "official"}
    folder = options.folder / "arrays" / name
    train, valid, test, _ = prepare(
        ImageSettings.model_validate(settings), folder, Path(tempfile.gettempdir())
    )
    return Images(train, valid, test)


def _given(path: str | None, option: str) -> str:
    if path is None:
        raise SystemExit(f"{option} PATH is missing; or leave this data set out with --data.")
    return path


def _fashion_mnist(folder: str) -> Images:
    """Read the IDX files; 28x28 pixels get a black margin of two."""
    parts = []
    for part in ("train", "t10k"):
        found = sorted(Path(folder).glob(f"{part}-images*idx3-ubyte*"))
        if not found:
            raise SystemExit(f"--fashion-mnist: {folder} has no {part}-images-idx3-ubyte file.")
        with (gzip.open if found[0].suffix == ".gz" else open)(found[0], "rb") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16)
        margin = [(0, 0), (0, 0), (2, 2), (2, 2)]
        parts.append(np.pad(pixels.reshape(-1, 1, 28, 28), margin))
    train, test = parts
    return Images(train[:-HELD_OUT], train[-HELD_OUT:], test[:HELD_OUT])


SECONDS = 600.0
PACKAGES = ("normflows", "FrEIA", "nflows")
POINTS = 15  # of a package's curve
SWEEP = {"learning_rate": (0.002, 0.005, 0.01), "clip": (1.0,)}
SWEEP_IMAGES = 25_600
HORIZONS = (100, 200, 400, 800)  # steps of our default's trainings
LATER = (800, 1600)  # of what comes between it and the packages
PLAIN = {"steps": SIZES["S"][0], "width": SIZES["S"][1], "whiten": False}
DEFAULT = {"steps": [8, 4, 2], "width": 64, "whiten": True}
CPU = torch.device("cpu")

MUON = {"learning_rate": 0.01, "muon_lr": 0.02, "clip": 10.0, "batch_size": 32}


class Package(Flow):
    """A package's flow under this project's interface."""

    axes = 3

    def __init__(self, flow: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.flow, self.event_shape = flow, shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to latents."""
        z, log_det = self.flow(x)
        return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents to images."""
        return self.flow.inverse(z)  # type: ignore[operator]


@dataclass(frozen=True)
class Contender:
    """A flow and how it is trained.

    Attributes:
        name: ``submanifold``, or a package's.
        training: Learning rates, clip, and size of batches.
        settings: Of this project's Glow.
        penalty: On the projection to 500 coordinates; none for the likelihood alone.
    """

    name: str
    training: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    penalty: dict[str, Any] = field(default_factory=dict)

    def start(self, images: Images, seed: int, steps: int) -> tuple[Trainer, Batches]:
        """Build it, and set what the first batch sets."""
        shape = images.train.shape[1:]
        torch.manual_seed(seed)
        if self.name in PACKAGES:
            flow: Flow = Package(PEERS[self.name](*SIZES["S"], shape), shape)  # type: ignore[arg-type]
        else:
            flow = Glow(shape, levels=3, **self.settings)
        hierarchy = Hierarchy([Stage(flow, 500 if self.penalty else math.prod(shape))])
        settings = TrainingSettings(
            steps=steps,
            warmup=50,
            cooldown_fraction=0.5,
            ema=0.99,
            validate_every=steps,
            precision="float32" if self.name in PACKAGES else "auto",
            **self.training,
        )
        trainer = Trainer(hierarchy, penalized_likelihood(**self.penalty), settings)
        if self.name in PACKAGES and settings.muon_lr:
            trainer.optimizers = muon_for(flow, settings.learning_rate, settings.muon_lr)
        batches = Batches(images.train, settings.batch_size, seed)
        initialize(hierarchy, batches.at(0))
        trainer.ema.reset()
        return trainer, batches

    @property
    def label(self) -> str:
        """A name for files, different for each."""
        text = json.dumps([self.training, self.settings, self.penalty], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def muon_for(flow: nn.Module, rate: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Give a package this project's optimizers: Muon for its convolutions, Adam for the rest."""
    nets = [layer.weight for layer in flow.modules() if isinstance(layer, nn.Conv2d)]
    rest = [weight for weight in flow.parameters() if all(weight is not each for each in nets)]
    (adam,) = optimizers_for(nn.ParameterList(rest), rate, None)
    adam.param_groups[0]["betas"] = (0.9, 0.95)
    return [Muon(nets, muon_lr), adam]


@torch.no_grad()
def scores(hierarchy: Hierarchy, images: Images) -> dict[str, float]:
    """Bits per dimension on validation and test images, and the error of the test's projections."""
    hierarchy.eval()
    row = {}
    for part in ("valid", "test"):
        batches = Batches(getattr(images, part), 256)
        row[part] = torch.cat([hierarchy.bits_per_dim(x) for x in batches]).mean().item()
    if hierarchy.dim < math.prod(hierarchy.event_shape):
        errors = [
            (x - hierarchy.encoder_projection(x)).square().flatten(1).mean(1) for x in batches
        ]
        row["mse"] = torch.cat(errors).mean().item()
    hierarchy.train()
    return row


def train(contender: Contender, images: Images, seed: int, steps: int, points: int) -> list[Any]:
    """Train for some steps; scores of the averaged weights at ``points`` equally spaced steps.

    A training that ends in what is not finite has the scores before that.
    """
    trainer, batches = contender.start(images, seed, steps)
    marks = {round(steps * (n + 1) / points) for n in range(points)}
    rows = []
    with ProgressBar(f"{contender.label}, seed {seed}", "steps", steps, every=60) as meter:
        for step in range(1, steps + 1):
            values = trainer.step(batches.at(step - 1), batches.generator)
            meter.update(1)
            if step in marks:
                if not math.isfinite(values["loss"].item()):
                    break
                trainer.ema.swap()
                rows.append({"step": step, **scores(trainer.model, images)})  # type: ignore[arg-type]
                trainer.ema.swap()
    return rows


@dataclass
class Bench:
    """What is measured on one data set, a file for each: made when first asked for, then read."""

    folder: Path
    data: str
    images: Images

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """Read the result of a name, or make it."""
        path = self.folder / self.data / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, make())
        return read_json(path)

    def curve(self, contender: Contender, seed: int, steps: int, points: int = 1) -> list[Any]:
        """Scores along one training (:func:`train`)."""
        name = f"{contender.label}-{steps}-{seed}"
        return self.get(name, partial(train, contender, self.images, seed, steps, points))

    def seconds(self, contenders: Sequence[Contender]) -> dict[str, list[float]]:
        """Seconds of a step by label, all measured in turn: median and quartiles."""

        def measure() -> Any:
            tasks = {}
            for contender in contenders:
                trainer, batches = contender.start(self.images, 0, 10**6)
                batch = batches.at(0)
                tasks[contender.label] = partial(trainer.step, batch, batches.generator)
            return {label: timing[:3] for label, timing in interleave(tasks, 9, CPU).items()}

        key = hashlib.sha256(json.dumps([each.label for each in contenders]).encode())
        return self.get(f"seconds-{key.hexdigest()[:8]}", measure)

    def sweep(self, package: str) -> list[dict[str, Any]]:
        """Try the recipes of :data:`SWEEP` for a package, one setting after the other.

        Returns:
            Recipes and their scores, the best on validation images first.
        """
        best: dict[str, Any] = {"muon_lr": None, "clip": None, "batch_size": 32}
        tried = []
        for name, values in SWEEP.items():
            for value in values:
                recipe = {**best, name: value}
                steps = SWEEP_IMAGES // recipe["batch_size"]
                curve = self.curve(Contender(package, recipe), 0, steps)
                row = curve[-1] if curve else {"valid": math.inf, "test": math.inf}
                tried.append({"recipe": recipe, **row})
            best = min(tried, key=lambda row: row["valid"])["recipe"]
        return sorted(tried, key=lambda row: row["valid"])


def chosen(rows: list[Any]) -> float:
    """Test bits of the weights with the best validation bits."""
    return min(rows, key=lambda row: row["valid"])["test"]


def interval(values: Sequence[float]) -> str:
    """Mean and 95% interval over seeds (Student's t)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


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


def table(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the first of which is the head, as Markdown."""
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *others, ""])


OURS = "our default"


def ten_minutes(bench: Bench, sweeps: dict[str, Any], seed: int) -> tuple[Contender, Any]:
    """Train a package for ten minutes: the best on CelebA that does not diverge here.

    Args:
        bench: The data set.
        sweeps: The rows of each package's sweep, the best package first.
        seed: Of the training.

    Returns:
        The contender, and its curve.
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
    """Train all contenders on one data set: seconds, and test bits for each seed.

    The package and what comes between it and our default, one change after the other, have one
    seed, and the latter are for CelebA alone.
    """
    reference, curve = ten_minutes(bench, sweeps, 0)
    package = reference.name
    contenders = {f"{package}, Adam": reference}
    curves = {f"{package}, Adam": [curve]}
    if bench.data == "celeba":
        contenders |= {
            f"{package}, our optimizers": Contender(package, MUON),
            "our Glow, our optimizers": Contender("submanifold", MUON, PLAIN),
        }
    contenders[OURS] = Contender("submanifold", MUON, DEFAULT)
    for name, contender in contenders.items():
        if name not in curves:
            horizons = HORIZONS if name == OURS else LATER
            count = seeds if name == OURS else 1
            curves[name] = [
                [bench.curve(contender, seed, each)[-1] for each in horizons]
                for seed in range(count)
            ]
    seconds = bench.seconds([*contenders.values()])
    return {
        name: {
            "step": seconds[contender.label][0],
            "seconds": [seconds[contender.label][0] * row["step"] for row in curves[name][0]],
            "bits": [[chosen(rows[: n + 1]) for n in range(len(rows))] for rows in curves[name]],
        }
        for name, contender in contenders.items()
    }


def summary(found: dict[str, Any]) -> list[list[str]]:
    """Write one data set's rows: bits at the end, and seconds to the best package's bits."""
    reference = next(iter(found.values()))
    goal, longest = np.mean([curve[-1] for curve in reference["bits"]]), reference["seconds"][-1]
    rows = [["", "step, ms", "bits at the end", "seconds", f"seconds to {goal:.3f} bits", "share"]]
    for name, row in found.items():
        needed = [seconds_to(goal, row["seconds"], curve) for curve in row["bits"]]
        needed = [longest] if row is reference else needed
        mean = float(np.mean(needed))
        end = interval([curve[-1] for curve in row["bits"]])
        cells = [name, f"{1e3 * row['step']:.1f}", end, f"{row['seconds'][-1]:.0f}"]
        reached = math.isfinite(mean)
        cells += [f"{mean:.0f}", f"{mean / longest:.3f}"] if reached else ["not reached", ""]
        rows.append(cells)
    return rows


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the curves of each data set, bits against seconds."""
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
    """Measure what is missing, and write the tables and the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    options = parser.parse_args()
    if "celeba" not in options.data:
        parser.error("--data needs celeba, on which the packages' recipes are chosen")
    benches = {name: Bench(options.folder, name, load(name, options)) for name in options.data}
    sweeps = {name: benches["celeba"].sweep(name) for name in options.packages}
    sweeps = dict(sorted(sweeps.items(), key=lambda sweep: sweep[1][0]["valid"]))
    head = ["sweep on CelebA", *SWEEP, "validation bits"]
    tried = [
        [name, *(str(row["recipe"][key]) for key in SWEEP), f"{row['valid']:.3f}"]
        for name, rows in sweeps.items()
        for row in rows
    ]
    page, found = [table([head, *tried])], {}
    for name, bench in benches.items():
        found[name] = measure(bench, sweeps, options.seeds)
        page.append(f"### {name}\n\n{table(summary(found[name]))}")
        print(page[-1], flush=True)
    (options.folder / "quality.md").write_text("\n".join(page))
    draw(found, options.folder / "quality.png")


if __name__ == "__main__":
    main()
