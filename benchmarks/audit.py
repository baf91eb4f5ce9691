"""Audits of flows of this project and of four packages after brief trainings on the same data.

    python -m benchmarks.audit

Needs `pip install normflows nflows FrEIA`. Prints the table of docs/evidence/audit.md.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.results import markdown
from submanifold import audit
from submanifold.flows import Glow, Tabular, initialize
from submanifold.models.stage import standard_normal_log_prob

DIM, WIDTH, TRAIN, BATCH = 16, 64, 1200, 128
LogProb = Callable[[Tensor], Tensor]


def digits(side: int) -> tuple[Tensor, Tensor]:
    """Load digits, averaged to side x side pixels, dequantized and standardized: two splits."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(load_digits().images).float()[:, None]
    pixels = pixels[torch.randperm(len(pixels), generator=generator)]
    x = F.avg_pool2d(pixels + torch.rand(pixels.shape, generator=generator), 8 // side)
    train = x[:TRAIN]
    x = (x - train.mean(0)) / (train.std(0) if side < 8 else train.std())
    return x[:TRAIN], x[TRAIN:]


def of_standard_normal(flow: nn.Module) -> tuple[nn.Module, LogProb]:
    def log_prob(x: Tensor) -> Tensor:
        z, log_det = flow(x)
        return standard_normal_log_prob(z) + log_det

    return flow, log_prob


def zuko_flow(name: str) -> tuple[nn.Module, LogProb]:
    import zuko

    flow = getattr(zuko.flows, name)(DIM, transforms=3, hidden_features=(WIDTH, WIDTH))
    return flow, lambda x: flow().log_prob(x)


def normflows_spline() -> tuple[nn.Module, LogProb]:
    import normflows
    from normflows.flows import CoupledRationalQuadraticSpline, LULinearPermute

    layers = [
        layer
        for _ in range(4)
        for layer in (CoupledRationalQuadraticSpline(DIM, 2, WIDTH), LULinearPermute(DIM))
    ]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(DIM), layers)
    return flow, flow.log_prob


def nflows_spline() -> tuple[nn.Module, LogProb]:
    from nflows import distributions, flows, transforms

    spline = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    layers = [
        layer
        for _ in range(3)
        for layer in (
            transforms.RandomPermutation(DIM),
            spline(DIM, WIDTH, tails="linear", tail_bound=3.0),
        )
    ]
    base = distributions.StandardNormal([DIM])
    flow = flows.Flow(transforms.CompositeTransform(layers), base)
    return flow, flow.log_prob


def freia_coupling() -> tuple[nn.Module, LogProb]:
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock

    def net(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))

    flow = SequenceINN(DIM)
    for _ in range(8):
        flow.append(AllInOneBlock, subnet_constructor=net)
    return of_standard_normal(flow)


FLOWS: dict[str, Callable[[], tuple[Any, LogProb]]] = {
    "zuko NSF": lambda: zuko_flow("NSF"),
    "zuko MAF": lambda: zuko_flow("MAF"),
    "normflows RQ-NSF (C)": normflows_spline,
    "nflows RQ-NSF (AR)": nflows_spline,
    "FrEIA AllInOne": freia_coupling,
    "ours, tabular": lambda: of_standard_normal(Tabular(DIM)),
    "ours, glow": lambda: of_standard_normal(Glow((1, 8, 8), levels=2, steps=4, width=32)),
}


@click.command()
@click.option("--steps", default=300, show_default=True)
@click.argument("names", nargs=-1)
def main(steps: int, names: tuple[str, ...]) -> None:
    """Train and audit flows; NAMES are those of the rows, by default all."""
    rows = []
    for name in names or FLOWS:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  FrEIA draws from it
        flow, log_prob = FLOWS[name]()
        train, held_out = digits(8 if "glow" in name else 4)
        train, held_out = (x if "glow" in name else x.flatten(1) for x in (train, held_out))
        initialize(flow, train[:BATCH])
        optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            (-log_prob(train[torch.randint(TRAIN, (BATCH,))]).mean()).backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
        result = audit(flow, train, held_out)
        rows.append({"flow": name, **result.table.apply(cell, axis=1)})
    click.echo(markdown(rows))
    packages = "torch", "zuko", "normflows", "nflows", "FrEIA"
    click.echo(", ".join(f"{package} {version(package)}" for package in packages))


def cell(check: pd.Series) -> str:
    value = f"{check.value:.2f} ± {check.error:.2f}" if check.error else f"{check.value:.1e}"
    return value if check.status == "pass" else f"{value}, **{check.status}**"


if __name__ == "__main__":
    main()
