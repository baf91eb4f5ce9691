"""Draw the figures of docs/concepts: ``python docs/figures.py`` (about a minute on a CPU).

The pictures of the manifold are those of a flow that this script trains on noisy points of an arc.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from submanifold.data.batches import Batches
from submanifold.data.synthetic import VonMisesCircle
from submanifold.flows import RealNVP
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage, manifold_density
from submanifold.training.settings import TrainingSettings
from submanifold.training.trainer import fit

FOLDER = Path(__file__).parent / "images"
ARC = VonMisesCircle(noise=0.35, radius=2.0, concentration=3.0, mean=(0.0, 1.0))
WEIGHT = 0.1
POINTS, MANIFOLD, ENCODER, NEAREST = "0.7", "#d62728", "#1f5fa8", "#2c8c3c"


def train(steps: int = 2000) -> Hierarchy:
    """Train a flow of the plane with a manifold of dimension 1."""
    torch.manual_seed(0)
    model = Hierarchy([Stage(RealNVP(2, couplings=8, hidden=64, mixing=True), dim=1)])
    batches = [
        Batches(ARC.sample(count, np.random.default_rng(seed)).astype(np.float32), 512)
        for seed, count in enumerate((50_000, 2_000))
    ]
    settings = TrainingSettings(
        steps=steps, batch_size=512, learning_rate=0.003, warmup=50, cooldown_fraction=0.5,
        clip=1.0, ema=0.99, validate_every=250, precision="float32",
    )  # fmt: skip
    objective = penalized_likelihood("mse", weight=WEIGHT)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, objective, *batches, settings, Path(folder), "figures")
    return model.eval().requires_grad_(False)


def curve(model: Hierarchy, u: Tensor | float, v: Tensor | float) -> np.ndarray:
    """Decode the points of a curve, of which one coordinate is a number."""
    u, v = torch.broadcast_tensors(torch.as_tensor(u), torch.as_tensor(v))
    return model.decode(u.float()[:, None], v.float()[:, None]).numpy()


def style(axes: Axes, title: str, x: str = "$x_1$", y: str = "$x_2$") -> None:
    """Label the axes of a panel of the plane."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_aspect("equal")


def coordinates(model: Hierarchy, points: Tensor) -> Figure:
    """Draw the data and the latents with the same grid of coordinates."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    data, latent = figure.subplots(1, 2, width_ratios=(1.15, 1))
    u, v = model.encode(points)
    line = torch.linspace(-2.6, 2.6, 200)
    for each in torch.arange(-2, 2.5, 0.5):
        for axes, of_u, of_v in (
            (data, curve(model, each, line), curve(model, line, each)),
            (latent, np.stack([0 * line + each, line], 1), np.stack([line, 0 * line + each], 1)),
        ):
            axes.plot(*of_u.T, color=ENCODER, lw=0.7)
            axes.plot(*of_v.T, color="0.45", lw=0.7)
    for axes, at in ((data, points), (latent, torch.cat([u, v], 1))):
        axes.scatter(*at.T, s=2, color=POINTS, zorder=0)
    data.plot(*curve(model, line, 0.0).T, color=MANIFOLD, lw=2.5, label="manifold, v = 0")
    latent.plot(line, 0 * line, color=MANIFOLD, lw=2.5)
    data.plot([], color=ENCODER, lw=1, label="u constant")
    data.plot([], color="0.45", lw=1, label="v constant")
    data.legend(fontsize=8, loc="lower center", frameon=False)
    style(data, "Data space")
    style(latent, "Latent space", "u, on the manifold", "v, off the manifold")
    latent.set_xlim(-2.9, 2.9)
    latent.set_ylim(-2.9, 2.9)
    return figure


def projections(model: Hierarchy, points: Tensor) -> Figure:
    """Draw encoder projections and nearest projections of a few points."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    u, v = model.encode(points)
    far = torch.nonzero((v.abs() > 1.0).squeeze(1) & (u.abs() < 1.6).squeeze(1)).squeeze(1)
    order = far[u[far, 0].argsort()]
    some = order[torch.linspace(0, len(order) - 1, 9).long()]
    x = points[some]
    line = torch.linspace(-2.6, 2.6, 400)
    titles = ("Encoder projection, decode(u, 0)", "Nearest projection, nearest=True")
    for axes, color, title in zip(
        figure.subplots(1, 2, sharey=True), (ENCODER, NEAREST), titles, strict=True
    ):
        is_nearest = color == NEAREST
        project = partial(model.project, nearest=True) if is_nearest else model.encoder_projection
        projected = project(x)
        error = (points - project(points)).square().sum(1).mean()
        axes.scatter(*points.T, s=2, color="0.85", zorder=0)
        axes.plot(*curve(model, line, 0.0).T, color=MANIFOLD, lw=2)
        for n, (start, end) in enumerate(zip(x, projected, strict=True)):
            if is_nearest:
                path = torch.stack([start, end]).numpy()
            else:
                off = torch.linspace(float(v[some[n], 0]), 0, 50)
                path = curve(model, u[some[n], 0], off)
            axes.plot(*path.T, color=color, lw=1.4)
        axes.scatter(*x.T, s=14, color="black", zorder=3)
        axes.scatter(*projected.T, s=14, color=color, zorder=3)
        style(axes, f"{title}\nmean squared distance {error:.3f}")
    return figure


def densities(model: Hierarchy, points: Tensor) -> Figure:
    """Draw the density on the plane, and both densities along the manifold."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    plane, along = figure.subplots(1, 2, width_ratios=(1, 1.2))
    side = np.linspace(-3.4, 3.4, 200)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    density = model.log_prob(torch.from_numpy(grid).float()).exp().numpy().reshape(200, 200)
    plane.contourf(side, side, density, 12, cmap="Greys")
    line = torch.linspace(-2.6, 2.6, 400)
    on = torch.from_numpy(curve(model, line, 0.0))
    plane.plot(*on.T.numpy(), color=MANIFOLD, lw=1.5)
    style(plane, "Density on all of space, per area")
    angle = np.degrees(np.arctan2(on[:, 0].numpy(), on[:, 1].numpy()))
    along.plot(angle, model.log_prob(on).exp(), color="0.35", label="on all of space, per area")
    along.plot(
        angle, manifold_density(model, on).log_prob.exp(), color=MANIFOLD,
        label="on the manifold, per length",
    )  # fmt: skip
    true = ARC.radius * np.stack([np.sin(np.radians(angle)), np.cos(np.radians(angle))], 1)
    along.plot(angle, np.exp(ARC.manifold_log_prob(true)), "k--", lw=1, label="the true one")
    along.set_xlabel("angle along the arc, degrees", fontsize=9)
    along.set_title("Both densities at points of the manifold", fontsize=10)
    along.legend(fontsize=8, frameon=False, loc="upper right")
    along.set_ylim(0, 0.62)
    along.tick_params(labelsize=8)
    return figure


def stages() -> Figure:
    """Draw the stages of a hierarchy and the phases of the default method."""
    figure = Figure(figsize=(8, 4.3), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 16)
    axes.set_ylim(0, 8.6)
    axes.axis("off")

    def box(x: float, y: float, width: float, text: str, color: str, height: float = 0.9) -> None:
        axes.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0.08", fc=color, ec="0.3"))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        patch = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color="0.3")
        axes.add_patch(patch)

    data, flow, on, off = "#eeeeee", "#cfe0f0", "#f6cfcf", "#e3e3e3"
    axes.text(0, 8.2, "The model: two stages", fontsize=10, weight="bold")
    box(0.2, 6.3, 2.2, "image x\n3,072 numbers", data, 1.2)
    box(3.4, 6.3, 2.6, "stage 1\nGlow, rotation", flow, 1.2)
    box(7.0, 7.1, 2.9, "u: 500 coordinates", on, 0.8)
    box(7.0, 5.8, 2.9, "v: 2,572, N(0, I)", off, 0.8)
    box(10.9, 7.1, 2.0, "stage 2\nRealNVP", flow, 0.8)
    box(13.8, 7.1, 1.9, "code, N(0, I)", on, 0.8)
    for start, end in (
        ((2.5, 6.9), (3.3, 6.9)), ((6.1, 7.1), (6.9, 7.5)), ((6.1, 6.7), (6.9, 6.2)),
        ((10.0, 7.5), (10.8, 7.5)), ((13.0, 7.5), (13.7, 7.5)),
    ):  # fmt: skip
        arrow(start, end)
    axes.text(0, 4.5, "The training: five phases of density-first", fontsize=10, weight="bold")
    phases = (
        ("density", "likelihood\n2,800 steps", flow),
        ("rotation", "order latents\nno training", on),
        ("reconstruction", "error at random d\n800 steps", flow),
        ("rotation_2", "order latents\nno training", on),
        ("code_flow", "likelihood of u\n200 steps", flow),
    )
    for number, (name, text, color) in enumerate(phases):
        x = 0.2 + 3.2 * number
        box(x, 2.2, 2.6, text, color, 1.2)
        axes.text(x + 1.3, 3.7, name, ha="center", fontsize=9, family="monospace")
        stage = "stage 2" if name == "code_flow" else "stage 1"
        axes.text(x + 1.3, 1.6, stage, ha="center", fontsize=9, color="0.35")
        if number:
            arrow((x - 0.5, 2.8), (x - 0.1, 2.8))
    axes.text(
        0, 0.6, "Later phases start from the weights of earlier ones; each phase is cached.",
        fontsize=9, color="0.35",
    )  # fmt: skip
    return figure


def main() -> None:
    """Train the model and write all figures."""
    model = train()
    points = torch.from_numpy(ARC.sample(1500, np.random.default_rng(2)).astype(np.float32))
    figures = {
        "coordinates": coordinates(model, points),
        "projections": projections(model, points),
        "densities": densities(model, points),
        "stages": stages(),
    }
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=110)
    bits = model.bits_per_dim(points).mean()
    true = -ARC.log_prob(points.double().numpy()).mean() / (2 * np.log(2))
    print(f"{bits:.3f} bits per dimension; the true density has {true:.3f}")


if __name__ == "__main__":
    main()
