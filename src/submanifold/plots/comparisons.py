"""Figures that compare methods."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from submanifold.plots.images import panel_grid

ENDS = 0.01, 1  # ends of the logarithmic color scale of number_grids


def frontier(points: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Draw bits per dimension, if any, against errors of encoder and nearest projections."""
    figure, (axes,) = panel_grid(1, 1, (8.5, 5.5))
    for number, (name, (bits, encoder, nearest)) in enumerate(points.items()):
        color, marker = f"C{number % 10}", "s" if number < 10 else "D"
        if np.isnan(bits):
            axes.axvline(encoder, color="0.4", linestyle="--", linewidth=1, label=name)
            continue
        axes.plot([encoder, nearest], [bits, bits], color=color, linewidth=0.8)
        axes.plot(encoder, bits, marker, color=color, label=name)
        axes.plot(nearest, bits, marker, color=color, markerfacecolor="white")
    axes.set(
        xscale="log",
        xlabel="mean squared error (filled: encoder; open: nearest projection)",
        ylabel="bits per dimension",
    )
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    return figure


def number_grids(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw heat maps of tables with the same rows; small (good) values are dark, NaN is white."""
    first = next(iter(panels.values()))
    widths = [len(table.columns) for table in panels.values()]
    size = 2.2 + 0.62 * sum(widths), 1.5 + 0.28 * len(first)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    norm = LogNorm(*ENDS, clip=True)
    for axes, (title, table) in zip(grid, panels.items(), strict=True):
        values = table.to_numpy(float)
        axes.imshow(values, cmap="viridis", norm=norm, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column,
                    row,
                    f"{value:.2f}" if value < 10 else f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if norm(value) < 0.5 else "black",
                )
        names = [str(name).replace("_", "\n") for name in table.columns]
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set_title(title, fontsize=9)
    grid[0].set_yticks(range(len(first)), list(first.index), fontsize=8)
    return figure


def auroc_dots(pairs: Mapping[str, Mapping[str, float]], plain: Collection[str] = ()) -> Figure:
    """Draw the AUROC of each score, one panel per pair of data sets; plain scores are gray."""
    names = list(dict.fromkeys(name for scores in pairs.values() for name in scores))
    figure = Figure(figsize=(10, 0.9 + 0.34 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, (pair, scores) in zip(grid, pairs.items(), strict=True):
        for name, value in scores.items():
            color = "0.6" if name in plain else "C0"
            axes.plot(value, names.index(name), "o", color=color, ms=5)
        axes.axvline(0.5, color="0.8", lw=0.8)
        axes.set_xlim(-0.03, 1.03)
        axes.set_title(pair.replace(", ", ",\n"), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="y", alpha=0.25)
    grid[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    grid[0].invert_yaxis()
    figure.supxlabel("AUROC", fontsize=8)
    return figure
