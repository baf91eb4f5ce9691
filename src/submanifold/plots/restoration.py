"""Figures of restorations: their quality by method, and the coverage of the posterior."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

Measured = Mapping[str, Mapping[str, Any]]
"""Measures of :func:`submanifold.inverse.comparison.compare` by task."""


def restoration_psnr(measured: Measured, names: Mapping[str, str]) -> Figure:
    """Draw the PSNR of each method with its interval, one panel for each task.

    Args:
        measured: Measures by task.
        names: Labels of the methods; the first one is highlighted.
    """
    figure = Figure(figsize=(3.2 * len(measured), 2.8), layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False, sharey=True)[0]
    for axes, found in zip(panels, measured.values(), strict=True):
        for row, name in enumerate(names):
            if (each := found["psnr"].get(name)) is None:
                continue
            color = "0.45" if row else "C0"
            axes.plot(each["value"], row, "o", color=color)
            if each["low"] is not None:
                axes.plot([each["low"], each["high"]], [row, row], color=color)
        axes.set_yticks(range(len(names)), [*names.values()])
        axes.set(title=found["task"], xlabel="PSNR, dB")
        axes.grid(alpha=0.25, axis="x")
    panels[0].invert_yaxis()
    return figure


def posterior_coverage(measured: Measured) -> Figure:
    """Draw the share of pixels inside the posterior's intervals over their level, by task."""
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="calibrated")
    for found in measured.values():
        levels = [float(level) for level in found["coverage"]]
        shares = [each["value"] for each in found["coverage"].values()]
        axes.plot(levels, shares, marker="o", label=found["task"])
    axes.set(xlabel="level of the interval", ylabel="share of pixels inside",
             xlim=(0, 1), ylim=(0, 1))  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend()
    return figure
