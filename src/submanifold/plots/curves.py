"""Training curves."""

import math
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
COLUMNS = 3
EXACT = 1e-9
"""Squared errors below this are rounding errors."""
STYLES: dict[str, dict[str, Any]] = {"train": {"alpha": 0.4}, "valid": {"marker": "."}}


def training_curves(histories: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw loss, bits per dimension, and squared error over the steps of each training.

    Bits per dimension are also shown against the seconds of the training, on the axis at the top.

    If the loss has several terms, its panel also shows each weighted term. A panel is left out if
    it would repeat another one (the loss of a single term) or if all projections are exact (errors
    below :data:`EXACT`). All values refer to the input of the training: images, or the coordinates
    u of the previous stage.

    Args:
        histories: Results of :func:`submanifold.training.trainer.fit` by name. The key ``terms``
            lists the terms of the loss.
    """
    panels = [(name, key) for name, history in histories.items() for key in _panels(history)]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(9.5, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (name, key) in zip(grid, panels, strict=False):
        history = histories[name]
        terms = history.get("terms", [])
        keys = [key, *terms] if key == "loss" and len(terms) > 1 else [key]
        for number, each in enumerate(keys):
            _plot(axes, history, each, color=f"C{number}", lw=0.8 if number else 1.5)
        axes.set_title(f"{name}: {PANELS[key]}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.25)
        if key != "mse":
            _limit(axes)
        elif any(each.get(key, 0) > 0 for each in history["valid"]):
            axes.set_yscale("log")
        if key == "bits_per_dim":
            _add_seconds(axes, history)
        axes.axvline(history["best_step"], color="0.6", linestyle=":", linewidth=1)
        axes.legend(fontsize=7)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _add_seconds(axes: Axes, history: Mapping[str, Any]) -> None:
    """Add an axis of the seconds since the start of the training."""
    seconds, steps = history.get("seconds", 0), history.get("steps", 0)
    if seconds > 0 and steps > 0:
        rate = seconds / steps
        top = axes.secondary_xaxis("top", functions=(lambda x: x * rate, lambda x: x / rate))
        top.set_xlabel("seconds", fontsize=8)
        top.tick_params(labelsize=8)


def _panels(history: Mapping[str, Any]) -> list[str]:
    """Return the panels of a training, without repeated curves and exact projections."""
    errors = [each.get("mse", math.inf) for each in history["valid"]]
    found = [key for key in PANELS if any(key in each for each in history["valid"])]
    if "mse" in found and max(errors) < EXACT:
        found.remove("mse")
    same = history.get("terms") == ["likelihood"] and "bits_per_dim" in found
    if "loss" in found and (same or ("mse" in found and _is_multiple(history, "mse"))):
        found.remove("loss")
    return found


def _is_multiple(history: Mapping[str, Any], key: str) -> bool:
    """Return whether the loss is a constant multiple of another curve."""
    entries = [each for part in STYLES for each in history[part]]
    if any(key not in each or "loss" not in each for each in entries):
        return False
    loss, other = np.array([[each["loss"], each[key]] for each in entries], float).T
    kept = np.isfinite(loss) & np.isfinite(other)
    loss, other = loss[kept], other[kept]
    factor = loss @ other / max(other @ other, 1e-300)
    return bool(np.allclose(loss, factor * other, rtol=1e-4, atol=0))


def _plot(axes: Axes, history: Mapping[str, Any], key: str, **style: Any) -> None:
    for part, part_style in STYLES.items():
        points = [(entry["step"], entry[key]) for entry in history[part] if key in entry]
        label = part if key in PANELS else key if part == "valid" else None
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style, **part_style)


def _limit(axes: Axes) -> None:
    """Exclude the largest 3% of each curve, such as the start, from the range of the y-axis."""
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    finite = [values[np.isfinite(values)] for values in curves]
    ends = [np.quantile(values, [0, 0.97], method="lower") for values in finite if values.size]
    if ends and (height := np.max(ends) - np.min(ends)) > 0:
        axes.set_ylim(np.min(ends) - 0.06 * height, np.max(ends) + 0.06 * height)
