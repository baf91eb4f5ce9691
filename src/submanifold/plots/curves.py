"""Curves of trainings and of dimensions."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from submanifold.plots.images import panel_grid

PANELS = {
    "loss": "loss",
    "bits_per_dim": "bits per dimension",
    "mse": "squared error of the projection",
}
COLUMNS = 3
EXACT = 1e-9  # squared errors below this are rounding errors
STYLES: dict[str, dict[str, Any]] = {"train": {"alpha": 0.4}, "valid": {"marker": "."}}


def training_curves(histories: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw loss, bits per dimension, and squared error over the steps of each training.

    Bits per dimension are also shown against the seconds of the training, on the axis at the top,
    and a loss of several terms with each weighted term. A panel is left out if it would repeat
    another one (the loss of the likelihood), if it has a single point, or if all projections are
    exact. All values refer to the input of the training: images, or the coordinates u of the
    previous stage.
    """
    panels = [(name, key) for name, history in histories.items() for key in _panels(history)]
    figure, grid = panel_grid(len(panels), COLUMNS, (9.5 / COLUMNS, 2.5))
    for axes, (name, key) in zip(grid, panels, strict=True):
        history = histories[name]
        terms = history.get("terms", [])
        keys = [key, *terms] if key == "loss" and len(terms) > 1 else [key]
        for number, curve in enumerate(keys):
            _plot(axes, history, curve, color=f"C{number}", lw=0.8 if number else 1.5)
        axes.set_title(f"{name}: {PANELS[key]}", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.25)
        if key != "mse":
            _limit(axes)
        elif any(entry.get(key, 0) > 0 for entry in history["valid"]):
            axes.set_yscale("log")
        if key == "bits_per_dim":
            _add_seconds(axes, history)
        axes.axvline(history["best_step"], color="0.6", linestyle=":", linewidth=1)
        axes.legend(fontsize=7)
    return figure


def _add_seconds(axes: Axes, history: Mapping[str, Any]) -> None:
    seconds, steps = history.get("seconds", 0), history.get("steps", 0)
    if seconds > 0 and steps > 0:
        rate = seconds / steps
        top = axes.secondary_xaxis("top", functions=(lambda x: x * rate, lambda x: x / rate))
        top.set_xlabel("seconds", fontsize=8)
        top.tick_params(labelsize=8)


def _panels(history: Mapping[str, Any]) -> list[str]:
    """Return the panels of a training, without repeated curves, points and exact projections."""
    errors = [entry.get("mse", math.inf) for entry in history["valid"]]
    keys = [
        key
        for key in PANELS
        if any(key in entry for entry in history["valid"])
        and any(sum(key in entry for entry in history[part]) > 1 for part in STYLES)
    ]
    if "mse" in keys and max(errors) < EXACT:
        keys.remove("mse")
    if history.get("terms") == ["likelihood"] and {"loss", "bits_per_dim"} <= {*keys}:
        keys.remove("loss")
    return keys


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


def dimension_curves(
    curve: Mapping[str, Any],
    dim: int,
    first_order: Mapping[str, Any] | None = None,
    unit: str = "pixels in [0, 1]",
) -> Figure:
    """Draw errors over the dimension, with a marker at each measured one; mark the model's.

    From d = D - 1 on projections are nearly exact, so that these dimensions are left out. A curve
    of a single point is left out; the figure has no axes if there is no other.
    """
    figure, (axes,) = panel_grid(1, 1, (8, 4.5))
    lines: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("nearest projection", curve["nearest_dims"], curve["nearest_mse"], {"marker": "o"}),
        ("PCA", curve["dims"], curve["pca_mse"], {"color": "0.4", "marker": ".", "ls": "--"}),
        ("encoder projection", curve["dims"], curve["mse"], {"marker": ".", "linewidth": 1}),
    ]
    if first_order is not None:
        look: dict[str, Any] = {"color": "C1", "linestyle": ":", "linewidth": 1}
        lines.append(("first-order estimate", first_order["dims"], first_order["mse"], look))
    largest = max(curve["dims"], default=dim)
    for label, dims, errors, look in lines:
        points = [
            (d, e)
            for d, e in zip(dims, errors, strict=True)
            if e is not None and e > 0 and d <= largest
        ]
        if len(points) > 1:
            axes.plot(*np.transpose(points), label=label, **look)
    if not axes.lines:  # of a model of one dimension
        axes.remove()
        return figure
    axes.axvline(dim, color="0.6", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="dimension of the manifold", ylabel=f"mean squared error, {unit}")
    axes.xaxis.set_major_formatter(LogFormatter())  # 200, not 2 x 10^2
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.grid(alpha=0.25, which="both")
    axes.legend()
    return figure
