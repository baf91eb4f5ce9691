"""What single ideas are worth: bits of a short training with and without each, at equal seconds.

    python -m benchmarks.ideas --celeba img_align_celeba.zip --fashion-mnist FashionMNIST/raw
    python -m benchmarks.ideas --data celeba --only "GELU" "linear decay" ...

The base is this project's default Glow by its default recipe, 600 steps of 32 images. An idea
changes one thing about it. Its step is timed in turn with the base's, and it gets as many steps as
take the seconds of the base's 600. What is measured is kept in ``--folder``; the table goes to
``<folder>/ideas.md``.
"""

import argparse
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.images import Images, add_options, load
from benchmarks.quality import CPU, DEFAULT, MUON, Bench, scores, table
from benchmarks.timing import interleave
from submanifold.data.batches import Batches
from submanifold.flows import AffineCoupling, Glow, Linear, initialize
from submanifold.flows import glow as glow_module
from submanifold.flows.coupling import zero_initialized
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.training import optimizers, trainer
from submanifold.training.trainer import Trainer, TrainingSettings

STEPS = 600
TIMED = 7  # rounds
NOISE = 0.05  # a difference that these cannot tell from none

Patch = tuple[Any, str, Any]


def base(shape: tuple[int, ...], **changed: Any) -> Glow:
    """Build the flow that ideas change."""
    return Glow(shape, 3, **(DEFAULT | changed))


@dataclass(frozen=True)
class Idea:
    """One thing that is done in another way.

    Attributes:
        training: Settings of the training.
        glow: Builds the flow for images of a shape.
        trained: Changes a trainer before it starts.
        batch: Changes a batch of images.
        patches: Parts of the program that are replaced.
    """

    training: dict[str, Any] = field(default_factory=dict)
    glow: Callable[[tuple[int, ...]], Glow] = base
    trained: Callable[[Trainer], None] = lambda trainer: None
    batch: Callable[[Tensor], Tensor] = lambda x: x
    patches: tuple[Patch, ...] = ()

    def start(self, images: Images, seed: int, steps: int) -> tuple[Trainer, Batches]:
        """Build the base with this one thing changed."""
        torch.manual_seed(seed)
        shape = images.train.shape[1:]
        hierarchy = Hierarchy([Stage(self.glow(shape), math.prod(shape))])
        settings = TrainingSettings(
            **{
                "steps": steps,
                "warmup": 50,
                "cooldown_fraction": 0.5,
                "ema": 0.99,
                "validate_every": steps,
                "precision": "auto",
                **MUON,
                **self.training,
            }
        )
        batches = Batches(images.train, settings.batch_size, seed)
        initialize(hierarchy, batches.at(0))
        made = Trainer(hierarchy, penalized_likelihood(), settings)
        self.trained(made)
        return made, batches

    def train(self, images: Images, seed: int, steps: int) -> dict[str, float]:
        """Scores after some steps."""
        with ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(mock.patch.object(*patch))
            made, batches = self.start(images, seed, steps)
            for step in range(steps):
                values = made.step(self.batch(batches.at(step)), batches.generator)
            if not math.isfinite(values["loss"].item()):
                return {"valid": math.inf, "test": math.inf}
            made.ema.swap()
            return scores(made.model, images)  # type: ignore[arg-type]


def share_of_base(idea: Idea, images: Images) -> float:
    """Seconds for an image in training, as a multiple of the base's."""
    tasks, sizes = {}, {}
    for name, each in {"base": Idea(), "idea": idea}.items():
        made, batches = each.start(images, 0, 10**6)
        tasks[name] = partial(made.step, batches.at(0), batches.generator)
        sizes[name] = batches.batch_size
    times = interleave(tasks, TIMED, CPU)
    share = times["idea"].median / sizes["idea"] / (times["base"].median / sizes["base"])
    return 1.0 if abs(share - 1) < NOISE else share


def with_nets(make: Callable[[int, int], nn.Module]) -> Callable[[tuple[int, ...]], Glow]:
    """Build Glow with other coupling nets; ``make`` gets the channels and the width."""

    def build(shape: tuple[int, ...]) -> Glow:
        glow = base(shape)
        for module in glow.modules():
            if isinstance(module, AffineCoupling):
                inputs = module.net[0].in_channels  # type: ignore[index]
                module.net = make(2 * inputs, 64)
        return glow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    return build


def net_of(activation: Callable[[], nn.Module]) -> Callable[[int, int], nn.Module]:
    """Make the net of Glow with another activation."""
    return lambda channels, width: zero_initialized(
        nn.Conv2d(channels // 2, width, 3, padding=1),
        activation(),
        nn.Conv2d(width, width, 1),
        activation(),
        nn.Conv2d(width, channels, 3, padding=1),
    )


def gated_net(channels: int, width: int) -> nn.Module:
    """Residual block with a gate in the middle: h + a sigmoid(b), (a, b) from a convolution."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(width, 2 * width, 1)

        def forward(self, h: Tensor) -> Tensor:
            a, b = self.mix(F.relu(h)).chunk(2, 1)
            return h + a * b.sigmoid()

    first = nn.Conv2d(channels // 2, width, 3, padding=1)
    last = nn.Conv2d(width, channels, 3, padding=1)
    return zero_initialized(first, Gated(), nn.ReLU(), last)


def two_3x3_net(channels: int, width: int) -> nn.Module:
    """3x3 and 3x3, without the 1x1 between them."""
    first = nn.Conv2d(channels // 2, width, 3, padding=1)
    return zero_initialized(first, nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1))


def depthwise_net(channels: int, width: int) -> nn.Module:
    """As ConvNeXt's block: 1x1 to twice the width, depthwise 5x5, and 1x1 out."""
    wide = 2 * width
    return zero_initialized(
        nn.Conv2d(channels // 2, wide, 1),
        nn.Conv2d(wide, wide, 5, padding=2, groups=wide),
        nn.ReLU(),
        nn.Conv2d(wide, width, 1),
        nn.ReLU(),
        nn.Conv2d(width, channels, 1),
    )


def with_split_net(shape: tuple[int, ...]) -> Glow:
    """Give the prior of split latents a hidden layer."""
    glow = base(shape)
    for split in glow.splits:
        inputs = split.prior.in_channels
        split.prior = zero_initialized(  # type: ignore[assignment]
            nn.Conv2d(inputs, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 2 * inputs, 3, padding=1),
        )
    return glow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def haar(shape: tuple[int, ...]) -> Glow:
    """Start each level by an orthonormal Haar of 2x2 pixels, the coarse channels first."""
    glow = base(shape, whiten=False)
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    for level in glow.levels:
        linear: Linear = level.bijections[1].bijections[0]  # type: ignore[attr-defined]
        colours = torch.eye(len(linear.weight) // 4)
        # a squeeze has the four pixels of a channel side by side
        matrix = torch.einsum("cd,kp->kcdp", colours, signs).reshape_as(linear.weight)
        linear.weight.data.copy_(matrix)
    return glow


def muon_everywhere(made: Trainer) -> None:
    """Leave the splits' convolutions to Muon, too."""
    splits = made.model.stages[0].flow.splits  # type: ignore[union-attr,index]
    weights = [split.prior.weight for split in splits]  # type: ignore[union-attr]
    (group,) = made.optimizers[1].param_groups
    group["params"] = [p for p in group["params"] if all(p is not each for each in weights)]
    made.optimizers.append(optimizers.Muon(weights, MUON["muon_lr"]))


def adam_with(**settings: Any) -> Callable[[Trainer], None]:
    """Change Adam's settings."""

    def change(made: Trainer) -> None:
        made.optimizers[-1].param_groups[0].update(settings)

    return change


def cosine(step: int, settings: TrainingSettings) -> float:
    """Share of the peak rates: half a cosine after the warm-up."""
    rise = (step + 1) / settings.warmup
    gone = (step - settings.warmup) / (settings.steps - settings.warmup)
    return min(rise, 0.5 + 0.5 * math.cos(math.pi * max(0.0, gone)))


def reflected(x: Tensor) -> Tensor:
    """Reflect every second image of a batch."""
    return torch.cat([x[::2], x[1::2].flip(3)])


def whiten_all(channels: int, whiten: bool = False) -> Linear:
    """Make a Linear that whitens."""
    return Linear(channels, True)


def as_before(**more: Any) -> dict[str, Any]:
    """Adam's recipe of before, for the same images."""
    return {"muon_lr": None, "learning_rate": 0.005, **more}


IDEAS: dict[str, Idea] = {
    # optimizers
    "Adam 0.005 for all, clipped at 1, batch 64 (before)": Idea(as_before(clip=1.0, batch_size=64)),
    "Adam 0.005 for all": Idea(as_before()),
    "Adam 0.01 for all": Idea(as_before(learning_rate=0.01)),
    "Muon 0.01": Idea({"muon_lr": 0.01}),
    "Muon 0.04": Idea({"muon_lr": 0.04}),
    "Muon for the splits too": Idea(trained=muon_everywhere),
    "Muon's momentum 0.9": Idea(patches=((optimizers, "MOMENTUM", 0.9),)),
    "Muon's momentum 0.98": Idea(patches=((optimizers, "MOMENTUM", 0.98),)),
    "three Newton-Schulz iterations": Idea(patches=((optimizers, "ITERATIONS", 3),)),
    "five Newton-Schulz iterations": Idea(patches=((optimizers, "ITERATIONS", 5),)),
    "Adam 0.005 beside Muon": Idea({"learning_rate": 0.005}),
    "Adam 0.02 beside Muon": Idea({"learning_rate": 0.02}),
    "Adam's betas 0.9, 0.999": Idea(trained=adam_with(betas=(0.9, 0.999))),
    "Adam's epsilon 1e-4": Idea(trained=adam_with(eps=1e-4)),
    "clip at 1": Idea({"clip": 1.0}),
    "no clip": Idea({"clip": None}),
    "batch 16, Muon 0.014, Adam 0.007": Idea(
        {"batch_size": 16, "muon_lr": 0.014, "learning_rate": 0.007}
    ),
    "batch 64": Idea({"batch_size": 64}),
    "warm-up 10": Idea({"warmup": 10}),
    "warm-up 150": Idea({"warmup": 150}),
    "rates fall along half a cosine": Idea(patches=((trainer, "schedule", cosine),)),
    "rates fall from the start": Idea({"cooldown_fraction": 1.0}),
    "rates fall in the last 30%": Idea({"cooldown_fraction": 0.3}),
    "rates fall in the last 70%": Idea({"cooldown_fraction": 0.7}),
    "average of weights 0.995": Idea({"ema": 0.995}),
    "no average of weights": Idea({"ema": 0.0}),
    "every second image reflected": Idea(batch=reflected),
    # the first layer of a level
    "no whitening": Idea(glow=lambda shape: base(shape, whiten=False)),
    "Haar wavelets in its place": Idea(glow=haar),
    "every 1x1 convolution whitens": Idea(patches=((glow_module, "Linear", whiten_all),)),
    # nets
    "GELU": Idea(glow=with_nets(net_of(nn.GELU))),
    "SiLU": Idea(glow=with_nets(net_of(nn.SiLU))),
    "3x3-3x3": Idea(glow=with_nets(two_3x3_net)),
    "gated residual": Idea(glow=with_nets(gated_net)),
    "depthwise 5x5": Idea(glow=with_nets(depthwise_net)),
    "prior of split latents with a hidden layer": Idea(glow=with_split_net),
    # where the steps are
    "steps 4, 4, 4 on the levels": Idea(glow=partial(base, steps=[4, 4, 4])),
    "steps 3, 6, 8": Idea(glow=partial(base, steps=[3, 6, 8])),
    "steps 12, 4, 2": Idea(glow=partial(base, steps=[12, 4, 2])),
    "width 96": Idea(glow=partial(base, width=96)),
    "width 48": Idea(glow=partial(base, width=48)),
    "half the steps, width 128": Idea(glow=partial(base, steps=[4, 2, 1], width=128)),
}


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--only", nargs="+", choices=IDEAS, default=list(IDEAS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    benches = [Bench(options.folder, name, load(name, options)) for name in options.data]
    head = ["", *(f"{name}: bits, difference" for name in options.data), "seconds of a step"]
    rows = [head]
    chosen = {"base": Idea()} | {name: IDEAS[name] for name in options.only}
    reference: dict[str, float] = {}
    for name, idea in chosen.items():
        cells, label = [name], re.sub(r"\W+", "-", name)
        for bench in benches:
            images, first = bench.images, benches[0]
            share = first.get(f"ideas/{label}-share", partial(share_of_base, idea, first.images))
            size = idea.training.get("batch_size", MUON["batch_size"])
            steps = round(STEPS * MUON["batch_size"] / size / share)
            train = partial(idea.train, images, options.seed, steps)
            test = bench.get(f"ideas/{label}-{options.seed}", train)["test"]
            reference.setdefault(bench.data, test)
            cells.append(f"{test:.3f}, {test - reference[bench.data]:+.3f}")
        cells.append(f"{share:.2f}")
        rows.append(cells)
        print(table([head, cells]), flush=True)
    (options.folder / "ideas.md").write_text(table(rows))


if __name__ == "__main__":
    main()
