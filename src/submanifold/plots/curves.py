"""How trainings went."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = {
    "loss": "loss",
    "bits_per_dim": "bits per dimension",
    "mse": "squared error of the projection",
}
KINDS: dict[str, dict[str, Any]] = {"train": {"alpha": 0.4}, "valid": {"marker": "."}}


def training_curves(histories: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw loss, bits per dimension and squared error by step, a row for each training.

    Beside a loss of several terms there is what each of them contributes to it. All are measured
    on the training's own input: the image, or the coordinates u of the stages before.

    Args:
        histories: What :func:`submanifold.training.trainer.fit` returned, by name; the names of
            the loss's terms are under "terms".
    """
    figure = Figure(figsize=(9.5, 2.5 * len(histories)), layout="constrained")
    grid = figure.subplots(len(histories), len(PANELS), squeeze=False)
    for row, (name, history) in zip(grid, histories.items(), strict=True):
        terms = history.get("terms", [])
        for axes, (key, label) in zip(row, PANELS.items(), strict=True):
            shown = [key, *terms] if key == "loss" and len(terms) > 1 else [key]
            for number, each in enumerate(shown):
                _draw(axes, history, each, {"color": f"C{number}", "lw": 0.8 if number else 1.5})
            axes.axvline(history["best_step"], color="0.6", linestyle=":", linewidth=1)
            axes.set_title(f"{name}: {label}", fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(which="both", labelsize=8)
            axes.grid(alpha=0.25)
            if key != "mse":
                _limit(axes, history, shown)
            elif any(each.get(key, 0) > 0 for each in history["valid"]):
                axes.set_yscale("log")
        row[0].legend(fontsize=8)
    return figure


def _draw(axes: Axes, history: Mapping[str, Any], key: str, look: Mapping[str, Any]) -> None:
    for kind, strength in KINDS.items():
        points = [(row["step"], row[key]) for row in history[kind] if key in row]
        label = f"{key}, {kind}" if key in PANELS else key if kind == "valid" else None
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **look, **strength)


def _limit(axes: Axes, history: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Leave out the first fall, which would flatten all that follows."""
    ends = []
    for key in keys:
        values = np.array([row[key] for kind in KINDS for row in history[kind] if key in row])
        values = values[np.isfinite(values)]
        if values.size:
            ends.append(np.quantile(values, [0, 0.97], method="lower"))
    low, high = (np.min(ends), np.max(ends)) if ends else (0, 0)
    if high > low:
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + margin)
