"""Draw the figures of the concepts: ``python docs/figures.py`` (about a minute on a CPU).

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
from submanifold.losses import Loss
from submanifold.models import Hierarchy, Stage, manifold_density
from submanifold.training import Phase, TrainingSettings, fit

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
        steps=steps,
        batch_size=512,
        learning_rate=0.003,
        muon_lr=None,
        clip=1.0,
        validate_every=250,
        precision="float32",
    )
    loss = Loss(reconstruction={"penalty": "mse", "weight": WEIGHT})
    with tempfile.TemporaryDirectory() as folder:
        fit(Phase(model, loss, settings), *batches, Path(folder), "figures")
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
        angle,
        manifold_density(model, on).log_prob.exp(),
        color=MANIFOLD,
        label="on the manifold, per length",
    )
    true = ARC.radius * np.stack([np.sin(np.radians(angle)), np.cos(np.radians(angle))], 1)
    along.plot(angle, np.exp(ARC.manifold_log_prob(true)), "k--", lw=1, label="the true one")
    along.set_xlabel("angle along the arc, degrees", fontsize=9)
    along.set_title("Both densities at points of the manifold", fontsize=10)
    along.legend(fontsize=8, frameon=False, loc="upper right")
    along.set_ylim(0, 0.62)
    along.tick_params(labelsize=8)
    return figure


DATA, FLOW, ON, OFF = "#eeeeee", "#cfe0f0", "#f6cfcf", "#e3e3e3"


def canvas(width: float, height: float, inches: float) -> tuple[Figure, Axes]:
    """Make a figure of boxes, with axes from 0 to the width and the height."""
    figure = Figure(figsize=(8, inches), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """Draw a box with a text in its middle."""
    axes.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0.08", fc=color, ec="0.3"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow between two points."""
    patch = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color="0.3")
    axes.add_patch(patch)


def stages() -> Figure:
    """Draw the stages of a hierarchy and the phases of the default method."""
    figure, axes = canvas(16, 8.6, 4.3)
    axes.text(0, 8.2, "The model: two stages", fontsize=10, weight="bold")
    box(axes, 0.2, 6.3, 2.2, 1.2, "image x\n3,072 numbers", DATA)
    box(axes, 3.4, 6.3, 2.6, 1.2, "stage 1\nGlow, rotation", FLOW)
    box(axes, 7.0, 7.1, 2.9, 0.8, "u: 500 coordinates", ON)
    box(axes, 7.0, 5.8, 2.9, 0.8, "v: 2,572, N(0, I)", OFF)
    box(axes, 10.9, 7.1, 2.0, 0.8, "stage 2\nRealNVP", FLOW)
    box(axes, 13.8, 7.1, 1.9, 0.8, "code, N(0, I)", ON)
    for start, end in (
        ((2.5, 6.9), (3.3, 6.9)),
        ((6.1, 7.1), (6.9, 7.5)),
        ((6.1, 6.7), (6.9, 6.2)),
        ((10.0, 7.5), (10.8, 7.5)),
        ((13.0, 7.5), (13.7, 7.5)),
    ):
        arrow(axes, start, end)
    axes.text(0, 4.5, "The training: five phases of density-first", fontsize=10, weight="bold")
    phases = (
        ("density", "likelihood\n1,400 steps", FLOW),
        ("rotation", "order latents\nno training", ON),
        ("reconstruction", "error at random d\n500 steps", FLOW),
        ("rotation_2", "order latents\nno training", ON),
        ("code_flow", "error at random d\n1,500 steps", FLOW),
    )
    for number, (name, text, color) in enumerate(phases):
        x = 0.2 + 3.2 * number
        box(axes, x, 2.2, 2.6, 1.2, text, color)
        axes.text(x + 1.3, 3.7, name, ha="center", fontsize=9, family="monospace")
        stage = "stage 2" if name == "code_flow" else "stage 1"
        axes.text(x + 1.3, 1.6, stage, ha="center", fontsize=9, color="0.35")
        if number:
            arrow(axes, (x - 0.5, 2.8), (x - 0.1, 2.8))
    axes.text(
        0,
        0.6,
        "Later phases start from the weights of earlier ones; each phase is cached.",
        fontsize=9,
        color="0.35",
    )
    return figure


def data_flow() -> Figure:
    """Draw what a run reads and writes, and what uses its model."""
    figure, axes = canvas(16, 7.4, 3.7)
    row = (
        (0.1, "images, a table\nor points", DATA, ""),
        (2.9, "arrays of\neach split", DATA, "prepare_data"),
        (5.7, "model and history\nof each phase", FLOW, "train, rotate"),
        (8.8, "model with\ncalibration", ON, "calibrate"),
        (11.5, "metrics, samples,\nprojections", OFF, "evaluate"),
        (14.7, "report", OFF, "write_report"),
    )
    widths = (2.2, 2.1, 2.5, 2.1, 2.6, 1.2)
    for (x, text, color, node), width in zip(row, widths, strict=True):
        box(axes, x, 5.0, width, 1.2, text, color)
        axes.text(x + width / 2, 6.7, node, ha="center", fontsize=8, family="monospace")
        if node:
            arrow(axes, (x - 0.6, 5.6), (x - 0.1, 5.6))
    axes.text(0.1, 3.9, "data/, under a key of all settings and the code", fontsize=9, color="0.35")
    axes.text(11.3, 3.9, "MLflow, report.html", fontsize=9, color="0.35")
    box(axes, 8.8, 2.1, 2.1, 1.0, "Predictor", FLOW)
    arrow(axes, (9.85, 4.9), (9.85, 3.2))
    users = (
        "submanifold score,\nproject, ...",
        "ManifoldFlow\n(scikit-learn)",
        "served model\n(MLflow)",
    )
    for number, text in enumerate(users):
        x = 5.3 + 3.2 * number
        box(axes, x, 0.1, 2.7, 1.0, text, DATA)
        arrow(axes, (9.85, 2.0), (x + 1.35, 1.2))
    return figure


LAYERS = (
    ("cli", "commands", DATA),
    ("studies", "the paper's tables, comparisons, searches", DATA),
    ("pipelines", "Kedro's nodes and pipelines", DATA),
    (
        "runs | sklearn",
        "MLflow, torchrun, the catalog | the estimator, without Kedro",
        DATA,
    ),
    ("config", "conf/, validation, keys of outputs", DATA),
    ("inference | training", "Predictor | phases, optimizers, rotation", FLOW),
    ("plots", "figures, templates of pages", FLOW),
    ("evaluation", "metrics, intervals, anomaly scores", FLOW),
    ("losses", "objective and its terms", FLOW),
    ("models", "stages, hierarchies, mixtures, files", FLOW),
    ("data", "events, images, tables, splits", FLOW),
    ("geometry", "derivatives, nearest projections, volumes", FLOW),
    ("flows", "one bijection a file, contexts", FLOW),
    ("common", "errors, files, devices, threads", FLOW),
)


def layers() -> Figure:
    """Draw the packages of src; each imports only from those below it."""
    figure, axes = canvas(16, 14.6, 5.6)
    for number, (name, content, color) in enumerate(reversed(LAYERS)):
        y = 0.15 + 1.0 * number
        box(axes, 0.2, y, 3.9, 0.66, name, color)
        axes.text(4.6, y + 0.33, content, va="center", fontsize=9)
    axes.text(13.8, 12, "with Kedro\nand MLflow", fontsize=9, color="0.35", va="center")
    axes.text(13.8, 5.1, "a plain\ntorch library", fontsize=9, color="0.35", va="center")
    axes.plot([13.6, 13.6], [10.1, 14.0], color="0.6")
    axes.plot([13.6, 13.6], [0.1, 9.9], color="0.6")
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
        "data-flow": data_flow(),
        "layers": layers(),
    }
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.png", dpi=110)
    bits = model.bits_per_dim(points).mean()
    true = -ARC.log_prob(points.double().numpy()).mean() / (2 * np.log(2))
    print(f"{bits:.3f} bits per dimension; the true density has {true:.3f}")


if __name__ == "__main__":
    main()
