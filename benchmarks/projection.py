"""Error of projections against their cost, for trained models of images.

    python -m benchmarks.projection photos=MODEL:FOLDER celeba=MODEL:FOLDER ...

MODEL is a hierarchy.safetensors file, and FOLDER has the train.npy and test.npy of its data, such
as data/03_primary/photos-468160c18a. Prints the table of docs/evidence/performance.md, and draws
docs/evidence/projections.png. Costs are processor times on one thread, measured in turn, as
multiples of an encoder pass, which is the encoder projection of the same images.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from submanifold.common.linalg import conjugate_gradients
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.reconstruction import evenly_spaced
from submanifold.geometry.linearization import Linearization
from submanifold.geometry.nearest import nearest_point
from submanifold.models import Hierarchy, Model

DIMS, IMAGES, BATCH, ROUNDS = (100, 500, 1000), 128, 64, 3
LOWERED, FULL = (1, 2, 3, 6), (4, 8)
ENCODER, DEFAULT, EXACT, BEFORE = "encoder", "default", "exact", "Gauss-Newton, 3 x 8"
PLOT = Path("docs/evidence/projections.png")

Project = Callable[[Tensor], Tensor]


@torch.no_grad()
def gauss_newton(model: Model, x: Tensor, steps: int = 3, iterations: int = 8) -> Tensor:
    """The nearest projection of version 0.2: damped Gauss-Newton steps by conjugate gradients."""
    u = model.encode(x)[0]
    error = (x - model.decode(u)).flatten(1).square().sum(1)
    scale = model.eigenvalues.clamp_min(model.eigenvalues.max() * 1e-6).rsqrt()
    for _ in range(steps):
        at = Linearization(model.decode, u)
        gradient = scale * at.vjp(x - at.image)
        solution = conjugate_gradients(
            lambda p, at=at: at.jvp(scale * p), lambda w, at=at: scale * at.vjp(w),
            gradient, iterations, 3e-4,
        )  # fmt: skip
        slope = (solution * gradient).sum(1)
        start, previous, length = u, error, torch.ones_like(slope)
        for _ in range(5):
            candidate = start + length[:, None] * scale * solution
            found = (x - model.decode(candidate)).flatten(1).square().sum(1)
            better = found < error
            u = torch.where(better[:, None], candidate, u)
            error = torch.where(better, found, error)
            accepted = error <= previous - length * slope / 2
            if accepted.all():
                break
            length = torch.where(accepted, length, length / 2)
    return model.decode(u)


def projections(model: Hierarchy, dim: int) -> dict[str, Project]:
    """Projections to compare, by name; the search is in the coordinates of the manifold's stage."""
    manifold = model.part(1, model.manifold_stage).at_dim(dim)
    at = model.at_dim(dim)

    def search(gradients: int, precision: torch.dtype | None) -> Project:
        def project(x: Tensor) -> Tensor:
            u = manifold.encode(x)[0]
            values = manifold.eigenvalues
            return nearest_point(manifold.decode, x, u, gradients, values, precision).image

        return project

    return {
        ENCODER: at.encoder_projection,
        DEFAULT: at.project,
        EXACT: partial(at.project, exact=True),
        **{f"{n}, bfloat16": search(n, torch.bfloat16) for n in LOWERED},
        **{f"{n}, float32": search(n, None) for n in FULL},
        BEFORE: partial(gauss_newton, manifold),
    }


@torch.no_grad()
def measure(model: Hierarchy, folder: Path) -> list[dict[str, object]]:
    """Measure errors relative to PCA, and costs, at each dimension."""
    test = evenly_spaced(np.load(folder / "test.npy", mmap_mode="r"), IMAGES)
    batches = list(Batches(test, BATCH))
    pca = PCA.fit(pca_batches(np.load(folder / "train.npy", mmap_mode="r")))
    rows: list[dict[str, object]] = []
    for dim in DIMS:
        reference = torch.cat(
            [(x - pca.project(x, dim)).flatten(1).square().mean(1) for x in batches]
        )
        compared = projections(model, dim)
        errors: dict[str, list[Tensor]] = {name: [] for name in compared}
        seconds = {name: np.full((ROUNDS, len(batches)), np.inf) for name in compared}
        for number, x in enumerate(batches):
            for round_ in range(ROUNDS):
                for name, project in compared.items():
                    if round_ and name not in (ENCODER, DEFAULT):
                        continue
                    started = time.process_time()
                    projected = project(x)
                    seconds[name][round_, number] = time.process_time() - started
                    if not round_:
                        errors[name].append((x - projected).flatten(1).square().mean(1))
        costs = {name: each.min(0).sum() for name, each in seconds.items()}
        first = torch.cat(errors[ENCODER])
        for name in compared:
            error = torch.cat(errors[name])
            assert (error <= first).all() or name not in (DEFAULT, EXACT), name
            rows.append({
                "d": dim, "projection": name, "error": float(error.mean() / reference.mean()),
                "cost": float(costs[name] / costs[ENCODER]),
                "ms": 1000 * float(costs[name]) / len(first),
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def plot(table: pd.DataFrame) -> None:
    """Draw errors against costs, a panel for each dimension."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(DIMS), sharey=True)
    for axes, dim in zip(panels, DIMS, strict=True):
        for number, (data, rows) in enumerate(table[table["d"] == dim].groupby("data", sort=False)):
            color, by_name = f"C{number}", rows.set_index("projection")
            lowered = [f"{n}, bfloat16" for n in LOWERED]
            curve = by_name.reindex([ENCODER, *lowered, DEFAULT]).dropna().sort_values("cost")
            axes.plot(curve["cost"], curve["error"], color=color, label=data)
            named = [f"{n}, float32" for n in FULL]
            full = by_name.reindex([*named, EXACT]).dropna().sort_values("cost")
            axes.plot(full["cost"], full["error"], color=color, linestyle="--")
            for name, marker in {ENCODER: "o", DEFAULT: "D", EXACT: "s", BEFORE: "x"}.items():
                if name not in by_name.index:
                    continue
                axes.plot(*by_name.loc[name, ["cost", "error"]], marker, color=color)
        axes.axhline(1, color="0.5", linestyle=":")
        axes.set(xscale="log", yscale="log", title=f"d = {dim}", xlabel="cost, encoder passes")
        axes.grid(alpha=0.25, which="both")
    panels[0].set_ylabel("squared error / that of PCA")
    panels[0].legend()
    figure.savefig(PLOT, dpi=150)


def main() -> None:
    """Measure the models of the command line."""
    torch.set_num_threads(1)
    tables = []
    for argument in sys.argv[1:]:
        name, _, paths = argument.partition("=")
        model, _, folder = paths.partition(":")
        rows = measure(Hierarchy.load(model), Path(folder))
        tables.append(pd.DataFrame(rows).assign(data=name))
    table = pd.concat(tables)
    cells = [f"{row.error:.3f} ({row.cost:.1f})" for row in table.itertuples()]
    wide = table.assign(cell=cells).pivot(index=["data", "projection"], columns="d", values="cell")
    order = pd.MultiIndex.from_frame(table[["data", "projection"]].drop_duplicates())
    print(wide.loc[order].reset_index().to_markdown(index=False))
    plot(table)


if __name__ == "__main__":
    main()
