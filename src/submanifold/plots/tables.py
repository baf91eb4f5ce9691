"""Figures of tables: columns of the data and of samples, in their own units."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from submanifold.data.tables.columns import Logarithmic
from submanifold.evaluation.metrics import format_value
from submanifold.plots.images import panel_grid

MAX_COLUMNS, PER_ROW = 24, 6  # columns of a figure of marginals, and panels in one of its rows
MAX_PAIRED, MAX_POINTS = 5, 1000  # columns of a figure of pairs, and points of one of its panels
BINS, MAX_VALUES = 40, 20  # bins of a histogram, and most bars of values
ENDS = 0.005, 0.995  # quantiles of the data between which values are shown


def marginals(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw a histogram of the first 24 columns of tables by name, the data first.

    The data determine the range of a panel; its outermost bins include values beyond.
    """
    data = next(iter(tables.values()))
    names = list(data)[:MAX_COLUMNS]
    figure, grid = panel_grid(len(names), min(PER_ROW, len(names)), (1.9, 1.6))
    figure.set_figheight(figure.get_figheight() + 0.4)
    for axes, name in zip(grid, names, strict=True):
        _marginal(axes, {label: table[name] for label, table in tables.items()})
        axes.set_title(_short(name), fontsize=8)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", ncols=len(labels))
    return figure


def pairs(data: pd.DataFrame, samples: pd.DataFrame) -> Figure:
    """Draw pairs of the most correlated columns: data below the diagonal, samples above it."""
    names = most_correlated(data, MAX_PAIRED)
    size = max(len(names), 1)
    figure = Figure(figsize=(1.8 * size + 0.4, 1.8 * size), layout="constrained")
    grid = figure.subplots(size, size, squeeze=False)
    ranges = {name: _range(data[name]) for name in names}
    for row, y in enumerate(names):
        for column, x in enumerate(names):
            axes = grid[row, column]
            if row == column:
                _histogram(axes, {"data": data[x], "samples": samples[x]})
            else:
                table, color = (data, "C0") if row > column else (samples, "C1")
                points = table[[x, y]].iloc[:MAX_POINTS].to_numpy(float)
                axes.scatter(*points.T, s=4, alpha=0.35, lw=0, color=color)
                axes.set(xscale=_scale(data[x]), yscale=_scale(data[y]))
                axes.set(xlim=ranges[x], ylim=ranges[y])
            axes.tick_params(labelsize=6, labelbottom=row == size - 1, labelleft=column == 0)
            _set_ticks(axes.xaxis)
            _set_ticks(axes.yaxis)
            if row == size - 1:
                axes.set_xlabel(_short(x), fontsize=8)
            if column == 0:
                axes.set_ylabel(_short(y), fontsize=8)
    return figure


def most_correlated(table: pd.DataFrame, count: int) -> list[str]:
    """Return the numeric columns with the largest mean absolute rank correlation, in order."""
    numeric = table.iloc[:MAX_POINTS].select_dtypes("number")
    varying = numeric.loc[:, numeric.nunique() > 1]
    strength = varying.rank().corr().abs().fillna(0).mean()
    chosen = set(strength.sort_values(ascending=False, kind="stable").index[:count])
    return [str(name) for name in varying if name in chosen]


def _marginal(axes: Axes, columns: Mapping[str, pd.Series]) -> None:
    """Draw one column for each table: bars for few values or categories, else histograms."""
    first = next(iter(columns.values()))
    if pd.concat(columns.values()).nunique() > MAX_VALUES and pd.api.types.is_numeric_dtype(first):
        _histogram(axes, columns)
        _set_ticks(axes.xaxis)
        return
    axes.tick_params(labelsize=6)
    axes.set_yticks([])
    values = sorted(first.value_counts().index[:MAX_VALUES])
    is_number = pd.api.types.is_numeric_dtype(first)
    places = np.array(values, float) if is_number else np.arange(len(values))
    width = 0.8 * min(np.diff(places), default=1) / len(columns)
    for number, (label, column) in enumerate(columns.items()):
        share = column.value_counts(normalize=True).reindex(values).fillna(0)
        axes.bar(places + number * width, share, width, label=label, color=f"C{number}")
    step = -(-len(values) // (4 if is_number else 6))
    middle = (places[::step] + (len(columns) - 1) * width / 2).tolist()
    axes.set_xticks(middle, [_short(value, 12 if is_number else 8) for value in values[::step]])


def _set_ticks(axis: Axis) -> None:
    if axis.get_scale() == "log":
        return  # which has ticks of its own
    axis.set_major_locator(MaxNLocator(3))
    axis.set_major_formatter(lambda x, _: format_value(x))


def _histogram(axes: Axes, columns: Mapping[str, pd.Series]) -> None:
    axes.tick_params(labelsize=6)
    axes.set_yticks([])
    first = next(iter(columns.values()))
    low, high = _range(first)
    spaced = np.geomspace if _scale(first) == "log" else np.linspace
    edges = spaced(low, high, BINS + 1).tolist()
    axes.set_xscale(_scale(first))
    for number, (label, column) in enumerate(columns.items()):
        numbers = column.to_numpy(float)
        numbers = numbers[np.isfinite(numbers)].clip(low, high)
        weights = np.full(len(numbers), 1 / max(len(numbers), 1))
        axes.hist(
            numbers,
            edges,
            weights=weights,
            histtype="step",
            label=label,
            lw=1.2,
            color=f"C{number}",
        )


def _range(column: pd.Series) -> tuple[float, float]:
    values = column.to_numpy(float)
    low, high = np.quantile(values[np.isfinite(values)], ENDS)
    if _scale(column) == "log":
        margin = (high / low) ** 0.05
        return float(low / margin), float(high * margin)
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _scale(column: pd.Series) -> str:
    """Return matplotlib's name of the scale of an axis for a column of the data."""
    values = column.to_numpy(float)
    return "log" if Logarithmic.suits(values[np.isfinite(values)]) else "linear"


def _short(value: object, length: int = 22) -> str:
    text = format_value(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
