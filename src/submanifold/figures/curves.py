"""How trainings went."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

PANELS = {
    "loss": "loss",
    "bits_per_dim": "bits per dimension",
    "mse": "squared error of the projection",
}


def training_curves(histories: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw loss, bits per dimension and squared error by step, a row for each training.

    A stage's figures are those of its own input: the image for stage 1, the coordinates u of the
    stage before for the others.

    Args:
        histories: What :func:`submanifold.training.trainer.fit` returned, by name.
    """
    figure = Figure(figsize=(9.5, 2.5 * len(histories)), layout="constrained")
    grid = figure.subplots(len(histories), len(PANELS), squeeze=False)
    for row, (name, history) in zip(grid, histories.items(), strict=True):
        for axes, (key, label) in zip(row, PANELS.items(), strict=True):
            for kind, style in (
                ("train", {"color": "C0", "alpha": 0.5}),
                ("valid", {"color": "C3"}),
            ):
                points = [(each["step"], each[key]) for each in history[kind] if key in each]
                if points:
                    marker = "." if kind == "valid" else None
                    axes.plot(*zip(*points, strict=True), label=kind, marker=marker, **style)
            axes.axvline(history["best_step"], color="0.6", linestyle=":", linewidth=1)
            axes.set_title(f"{name}: {label}", fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(which="both", labelsize=8)
            axes.grid(alpha=0.25)
            _limit(axes, history, key)
            if key == "mse" and any(each.get(key, 0) > 0 for each in history["valid"]):
                axes.set_yscale("log")
        row[0].legend(fontsize=8)
    return figure


def _limit(axes: Any, history: Mapping[str, Any], key: str) -> None:
    """Leave out the first fall of the loss, which would flatten all that follows."""
    later = [each[key] for kind in ("train", "valid") for each in history[kind] if key in each]
    settled = sorted(later)[: max(2, int(0.97 * len(later)))]
    if len(settled) > 1 and settled[-1] > settled[0] and key != "mse":
        margin = 0.06 * (settled[-1] - settled[0])
        axes.set_ylim(settled[0] - margin, settled[-1] + margin)
