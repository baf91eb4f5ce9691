"""Training curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = {
    "loss": "loss",
    "bits_per_dim": "bits per dimension",
    "mse": "squared error of the projection",
}
STYLES: dict[str, dict[str, Any]] = {"train": {"alpha": 0.4}, "valid": {"marker": "."}}


def training_curves(histories: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw loss, bits per dimension, and squared error over the steps, one row per training.

    If the loss has several terms, the first panel also shows each weighted term. All values refer
    to the input of the training: images, or the coordinates u of the previous stage.

    Args:
        histories: Results of :func:`submanifold.training.trainer.fit` by name. The key ``terms``
            lists the terms of the loss.
    """
    figure = Figure(figsize=(9.5, 2.5 * len(histories)), layout="constrained")
    grid = figure.subplots(len(histories), len(PANELS), squeeze=False)
    for row, (name, history) in zip(grid, histories.items(), strict=True):
        terms = history.get("terms", [])
        for axes, (key, label) in zip(row, PANELS.items(), strict=True):
            keys = [key, *terms] if key == "loss" and len(terms) > 1 else [key]
            for number, each in enumerate(keys):
                _plot(axes, history, each, color=f"C{number}", lw=0.8 if number else 1.5)
            axes.set_title(f"{name}: {label}", fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(which="both", labelsize=8)
            axes.grid(alpha=0.25)
            if key != "mse":
                _limit(axes)
            elif any(each.get(key, 0) > 0 for each in history["valid"]):
                axes.set_yscale("log")
            axes.axvline(history["best_step"], color="0.6", linestyle=":", linewidth=1)
        row[0].legend(fontsize=8)
    return figure


def _plot(axes: Axes, history: Mapping[str, Any], key: str, **style: Any) -> None:
    for part, part_style in STYLES.items():
        points = [(entry["step"], entry[key]) for entry in history[part] if key in entry]
        label = f"{key}, {part}" if key in PANELS else key if part == "valid" else None
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style, **part_style)


def _limit(axes: Axes) -> None:
    """Exclude the largest 3% of each curve, such as the start, from the range of the y-axis."""
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    finite = [values[np.isfinite(values)] for values in curves]
    ends = [np.quantile(values, [0, 0.97], method="lower") for values in finite if values.size]
    if ends and (height := np.max(ends) - np.min(ends)) > 0:
        axes.set_ylim(np.min(ends) - 0.06 * height, np.max(ends) + 0.06 * height)
