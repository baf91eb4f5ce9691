"""Time what is not a step of Glow: steps of RealNVP, the loader, evaluation.

    python -m benchmarks.pieces

As in ``benchmarks.training_step``, contenders take turns in one process, samples that another
process disturbed are dropped, and packages that are not installed are left out. RealNVP stands
beside that of nflows, whose nets see half of the coordinates where ours see all of them, half of
them masked: it has 70% of the weights.
"""

import argparse
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.glows import PEERS, SHAPE, SIZES, Net, ours
from benchmarks.timing import interleave
from benchmarks.training_step import trainer_of
from submanifold.data.batches import Batches
from submanifold.flows import RealNVP
from submanifold.geometry.nearest import CG_ITERATIONS
from submanifold.geometry.volume import POINTS_PER_DECODING, log_volume
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.models.model import NEAREST_STEPS
from submanifold.training.rotation import fit_rotation

BATCH, COUPLINGS, IMAGES = 64, 6, 8192


class Theirs(nn.Module):
    """RealNVP by nflows."""

    def __init__(self, dim: int):
        super().__init__()
        from nflows.transforms.base import CompositeTransform
        from nflows.transforms.coupling import AffineCouplingTransform

        def net(given: int, wanted: int) -> nn.Module:
            return Net(
                nn.Linear(given, 2 * dim), nn.ReLU(),
                nn.Linear(2 * dim, 2 * dim), nn.ReLU(),
                nn.Linear(2 * dim, wanted),
            )  # fmt: skip

        self.event_shape = (dim,)
        masks = [(torch.arange(dim) + index) % 2 for index in range(COUPLINGS)]
        self.flow = CompositeTransform([AffineCouplingTransform(mask, net) for mask in masks])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode."""
        return self.flow(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Decode."""
        return self.flow.inverse(z)[0]


def realnvp(dim: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Steps of this project's trainer (d to d / 2), of its flow in both precisions and nflows'."""
    x = torch.randn(BATCH, dim, device=device)

    def steps(flow: nn.Module, precision: str) -> Callable[[], object]:
        hierarchy = Hierarchy([Stage([flow], dim // 2)]).to(device)  # type: ignore[list-item]
        objective = penalized_likelihood("mse", weight=0.1)
        return partial(trainer_of(hierarchy, objective, precision).step, x)

    found = {
        "submanifold": steps(RealNVP(dim, COUPLINGS), "auto"),
        "submanifold, float32": steps(RealNVP(dim, COUPLINGS), "float32"),
    }
    with suppress(ImportError):
        found["nflows"] = steps(Theirs(dim), "float32")
    return found


def loader(device: torch.device) -> dict[str, Callable[[], object]]:
    """A batch, shuffled, dequantised and on the device; and torch's own loader doing the same."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *SHAPE), dtype=np.uint8)
    ours_, number = Batches(images, BATCH, device=device), iter(range(10**9))
    dataset = TensorDataset(torch.from_numpy(images))

    def endless() -> Callable[[], None]:
        def batches():  # type: ignore[no-untyped-def]
            while True:
                yield from DataLoader(dataset, BATCH, shuffle=True, drop_last=True)

        iterator = batches()

        def load() -> None:
            (x,) = next(iterator)
            x = x.to(device).float()
            ((x + torch.rand_like(x)) / 256 - 0.5).cpu()

        return load

    return {
        "submanifold": lambda: ours_.at(next(number)),
        "torch DataLoader": endless(),
    }


def evaluation(device: torch.device) -> dict[str, Callable[[], object]]:
    """Log-density of 256 images in float32, at size S."""
    x = torch.rand(256, *SHAPE, device=device) - 0.5

    def score(flow: nn.Module) -> Callable[[], None]:
        flow.to(device)

        @torch.no_grad()
        def call() -> None:
            z, log_det = flow(x)
            log_det - 0.5 * z.square().sum(1)

        return call

    found = {"submanifold": score(ours(*SIZES["S"]))}
    for name, make in PEERS.items():
        with suppress(ImportError):
            found[name] = score(make(*SIZES["S"]))
    return found


def nearest(device: torch.device) -> dict[str, Callable[[], object]]:
    """Projections of 64 images onto 500 dimensions at size S: the encoder's, and the nearest."""
    torch.manual_seed(0)
    hierarchy = Hierarchy([Stage([ours(*SIZES["S"])], 500)]).to(device)
    hierarchy.stages[0].add_rotation()
    x = torch.rand(BATCH, *SHAPE, device=device) - 0.5

    def plain() -> None:
        """By torch.func, which takes plain modules."""
        u = hierarchy.encode(x)[0].detach()
        for _ in range(NEAREST_STEPS * (1 + CG_ITERATIONS)):
            jvp(hierarchy.decode, (u,), (u,))
            vjp(hierarchy.decode, u)[1](x)

    return {
        "encoder": torch.no_grad()(partial(hierarchy.project, x)),
        "3 Gauss-Newton steps": partial(hierarchy.project, x, steps=NEAREST_STEPS),
        "its products by torch.func": torch.no_grad()(plain),
    }


def rotation(device: torch.device) -> dict[str, Callable[[], object]]:
    """1,024 probes of the rotation's fit at size S, with the eigenvectors."""
    hierarchy = Hierarchy([Stage([ours(*SIZES["S"])], 500)]).to(device)
    images = np.random.default_rng(0).integers(0, 256, (256, *SHAPE), dtype=np.uint8)
    batches = Batches(images, BATCH, device=device)
    return {"submanifold": partial(fit_rotation, hierarchy, batches, 1024)}


def volume(device: torch.device) -> dict[str, Callable[[], object]]:
    """Exact volume of the manifold at 2 images, d = 500, at size S; its products by torch.func."""
    torch.manual_seed(0)
    hierarchy = Hierarchy([Stage([ours(*SIZES["S"])], 500)]).to(device).eval()
    u = torch.randn(2, 500, device=device)
    points = u.repeat(POINTS_PER_DECODING // 2, 1)

    def plain() -> None:
        for _ in range(2 * 500 // POINTS_PER_DECODING):
            jvp(hierarchy.decode, (points,), (points,))

    return {
        "submanifold": partial(log_volume, hierarchy.decode, u),
        "its products by torch.func": torch.no_grad()(plain),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="pieces whose name has this in it")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    pieces = {
        "RealNVP, 500 to 250, step": partial(realnvp, 500),
        "RealNVP, 1000 to 500, step": partial(realnvp, 1000),
        f"loading {BATCH} images": loader,
        "scoring 256 images": evaluation,
        f"projecting {BATCH} images": nearest,
        "a rotation by 1,024 probes": rotation,
        "the volume at 2 images": volume,
    }
    print("| | | ms | times the first's |\n| --- | --- | --- | --- |")
    for piece, make in pieces.items():
        if options.only not in piece:
            continue
        found = interleave(make(options.device), options.rounds, options.device)
        first = next(iter(found.values())).median
        for name, timing in found.items():
            median, low, high = (1e3 * value for value in timing[:3])
            ratio = f"{timing.median / first:.2f}x"
            print(f"| {piece} | {name} | {median:.4g} [{low:.4g}, {high:.4g}] | {ratio} |")


if __name__ == "__main__":
    main()
