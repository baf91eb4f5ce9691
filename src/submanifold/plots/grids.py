"""Tables of numbers as coloured grids."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure


def number_grids(panels: Mapping[str, pd.DataFrame], ends: tuple[float, float]) -> Figure:
    """Draw tables of numbers side by side, dark where they are small, which is good.

    Args:
        panels: By title, tables with the same rows; a NaN is left white.
        ends: Between which colours differ, by the logarithm.
    """
    first = next(iter(panels.values()))
    columns = sum(len(table.columns) for table in panels.values())
    figure = Figure(figsize=(2.2 + 0.62 * columns, 1.5 + 0.28 * len(first)), layout="constrained")
    widths = [len(table.columns) for table in panels.values()]
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (title, table) in zip(grid, panels.items(), strict=True):
        values = table.to_numpy(float)
        shown = np.clip(values, *ends)
        axes.imshow(shown, cmap="viridis", norm=LogNorm(*ends), aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = np.log(shown[row, column] / ends[0]) < np.log(ends[1] / ends[0]) / 2
                text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6,
                          color="white" if dark else "black")  # fmt: skip
        names = [str(name).replace("_", "\n") for name in table.columns]
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set_title(title, fontsize=9)
    grid[0].set_yticks(range(len(first)), list(first.index), fontsize=8)
    return figure
