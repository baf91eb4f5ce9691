"""The paper's figures of images, and of what a parameter, or several, do.

Those of images are laid out in dots, of which a pixel gets a whole number: saved with 150 dots per
inch, or a multiple, all pixels are sharp and of one size. Images too large for that get a whole
number of pixels for a dot, and need the multiple.
"""

from collections.abc import Mapping, Sequence
from math import ceil, inf
from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from scipy.ndimage import laplace

from submanifold.plots.images import DPI, image_gap, show_pixels, tile

Array = np.ndarray

PAGE, WIDEST_PANEL, NARROWEST_IMAGE = 7.0, 3.8, 0.6  # inches
LINE, GAP, GROUP_GAP, BLOCK_GAP, ROW_LABEL, BRACKET = 22, 12, 20, 24, 180, 33  # dots
FONT, SMALL_FONT = 9, 7.5  # points

REFERENCE = "#d62728"
TICKS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
HOVER = "d = {}<br>BPD {:.3f} ({:.3f} to {:.3f})<br>MSE {:.5f} ({:.5f} to {:.5f})"


def sample_panels(panels: Mapping[str, Array], columns: int, per_row: int = 8) -> Figure:
    """Draw Figures 3, 5, 6, 8, 9 and 10: a square of images for every method, named below.

    Args:
        panels: uint8 (n, channels, height, width) by the method's name, 1 or 3 channels, all of
            one size; the first per_row^2 are shown.
        columns: Squares in a row; an incomplete last row is centred.
        per_row: Images in a row of a square.

    Raises:
        ValueError: If there are too few images for a square.
    """
    for name, images in panels.items():
        if len(images) < per_row**2:
            raise ValueError(f"{name}: {len(images)} images, {per_row**2} are to be shown")
    squares = [tile(images[: per_row**2], per_row) for images in panels.values()]
    columns = min(columns, len(squares))
    dots = _dots_per_pixel(squares[0].shape[1], min(PAGE / columns, WIDEST_PANEL))
    height, width = (ceil(dots * side) for side in squares[0].shape[:2])
    foot = LINE * max(1 + name.count("\n") for name in panels) + GAP
    rows, step = -(-len(squares) // columns), width + GAP
    figure = _page(columns * step - GAP, rows * (height + foot) - GAP // 2)
    for index, (name, square) in enumerate(zip(panels, squares, strict=True)):
        row, column = divmod(index, columns)
        missing = max(0, (row + 1) * columns - len(squares))
        left, top = (2 * column + missing) * step // 2, row * (height + foot)
        _show(figure, square, left, top, dots)
        _write(figure, f"({ascii_lowercase[index]}) {name}", left + width / 2, top + height + 5)
    return figure


def delta_rows(
    originals: Array, by_delta: Mapping[float, tuple[Array, Array]], sample_rows: int = 2
) -> Figure:
    """Draw Figure 4: originals, then reconstructions and samples for each delta.

    Args:
        originals: uint8 (n, channels, height, width), in one row.
        by_delta: For each threshold of the Huber function, the projections of the originals and
            samples, uint8 (n, ...) and (m, ...) likewise.
        sample_rows: Rows of n samples each that are shown.
    """
    count, size = len(originals), originals.shape[2]
    dots, step, gap = _steps(size, (PAGE - ROW_LABEL / DPI) / count)
    group = (1 + sample_rows) * step + GROUP_GAP
    figure = _page(ROW_LABEL + count * step - gap, step + len(by_delta) * group - gap)

    def draw(name: str, images: Array, top: float) -> None:
        rows = tile(images, count)
        _show(figure, rows, ROW_LABEL, top, dots)
        middle = top + dots * len(rows) / 2
        _write(figure, name, ROW_LABEL - 9, middle, ha="right", va="center")

    draw("original", originals, 0)
    for index, (delta, (projections, samples)) in enumerate(by_delta.items()):
        top, bottom = step + GROUP_GAP + index * group, step + (index + 1) * group - gap
        draw("reconstructed", projections, top)
        draw("generated", samples[: sample_rows * count], top + step)
        number = r"\infty" if delta == inf else f"{delta:g}"
        label = {"ha": "left", "rotation": 90, "fontsize": FONT + 1}
        _write(figure, rf"$\delta = {number}$", 3, (top + bottom) / 2, va="center", **label)
        ends = _fractions(figure, np.array([BRACKET, BRACKET]), np.array([top, bottom]))
        figure.add_artist(Line2D(*ends, color="0.6", linewidth=0.8))
    return figure


def rejection_blocks(original: Array, projection: Array, per_row: int = 2) -> Figure:
    """Draw Figure 7: beside each image its projection, their difference, and the edges of that.

    The difference is the absolute error, averaged over channels, the edges are its absolute
    Laplacian; both are white from their 99.5th percentile over all images on.

    Args:
        original: uint8 (n, channels, height, width).
        projection: Their projections onto the manifold, likewise.
        per_row: Originals in a row.
    """
    difference = np.abs(original.astype(float) - projection).mean(1)
    maps = {
        "original": original.transpose(0, 2, 3, 1),
        "projection": projection.transpose(0, 2, 3, 1),
        "difference": _scaled(difference),
        "edges": _scaled(np.abs([laplace(each) for each in difference])),
    }
    size, per_row = original.shape[2], min(per_row, len(original))
    dots, step, gap = _steps(size, max(PAGE / (len(maps) * per_row), NARROWEST_IMAGE))
    block = len(maps) * step - gap + BLOCK_GAP
    rows = -(-len(original) // per_row)
    figure = _page(per_row * block - BLOCK_GAP, LINE + rows * step - gap)
    for index in range(len(original)):
        row, column = divmod(index, per_row)
        for kind, (name, images) in enumerate(maps.items()):
            left = column * block + kind * step
            _show(figure, images[index], left, LINE + row * step, dots)
            if row == 0:
                how = {"va": "bottom", "fontsize": SMALL_FONT}
                _write(figure, name, left + dots * size / 2, LINE - 4, **how)
    return figure


def sweep_figure(
    table: pd.DataFrame, parameter: str, pca: Sequence[float] | None = None
) -> go.Figure:
    """Plot bits per dimension against the squared error for the values of a parameter.

    Where the dimension of the manifold changes too, the error is plotted against it as well.

    Args:
        table: A model in each row: value (of the parameter), dim (of the manifold), bpd, bpd_low,
            bpd_high, mse, mse_low, mse_high, the 95% intervals around the two, and, for more
            models of one value, seed.
        parameter: Its name.
        pca: Squared error of PCA of the dimension of each row, in the order of the rows, in the
            units of mse.
    """
    table = table.assign(pca=np.nan if pca is None else list(pca)).sort_values("value")
    values = table["value"].unique()
    has_dims = table["dim"].nunique() > 1
    figure = make_subplots(1, 1 + has_dims, horizontal_spacing=0.12)
    shades = sample_colorscale("Viridis", np.linspace(0, 0.88, len(values)).tolist())
    if pca is not None:
        _add_pca(figure, table, has_dims)
    for value, shade in zip(values, shades, strict=True):
        rows = table[table["value"] == value]
        look = {
            "name": _written(value), "legendgroup": _written(value), "mode": "markers",
            "marker": {"color": shade, "size": 9, "line": {"color": "white", "width": 1}},
            "hovertext": [_hover(parameter, row) for row in rows.to_dict("records")],
            "hoverinfo": "text",
        }  # fmt: skip
        error, bits = _bars(rows, "mse", shade), _bars(rows, "bpd", shade)
        figure.add_scatter(
            x=rows["mse"], y=rows["bpd"], error_x=error, error_y=bits, row=1, col=1, **look
        )
        if has_dims:
            figure.add_scatter(
                x=rows["dim"], y=rows["mse"], error_y=error, row=1, col=2, showlegend=False, **look
            )
    _lay_out(figure, table, parameter, has_dims)
    return figure


def study_figure(table: pd.DataFrame, parameters: Sequence[str]) -> go.Figure:
    """Plot bits per dimension against the squared error of trials, and their Pareto front.

    Args:
        table: A trial in each row: trial, its number, state, front, whether it is on the Pareto
            front, bpd and mse, test_bpd and test_mse, and each parameter. Trials without values
            are counted.
        parameters: Their names.
    """
    figure = go.Figure()
    counts, done = table["state"].value_counts(), table[table["state"] == "complete"]
    on, off = (done[done["front"] == which].sort_values(["mse", "bpd"]) for which in (True, False))
    others = {"name": f"other trials ({len(off)})", "mode": "markers",
              "marker": {"color": "#8aa0b8", "size": 8}}  # fmt: skip
    # between its points the front is a step: nothing there is known to be reached
    front = {"name": f"Pareto front ({len(on)})", "mode": "lines+markers",
             "marker": {"color": REFERENCE, "size": 10, "line": {"color": "white", "width": 1}},
             "line": {"color": REFERENCE, "width": 1.5, "shape": "hv"}}  # fmt: skip
    for rows, look in (off, others), (on, front):
        hover = [_trial_hover(row, parameters) for row in rows.to_dict("records")]
        figure.add_scatter(x=rows["mse"], y=rows["bpd"], hovertext=hover, hoverinfo="text", **look)
    missing = [f"{counts[state]} {state}" for state in ("pruned", "failed") if state in counts]
    figure.update_layout(
        template="simple_white", height=480, hovermode="closest",
        font={"family": "DejaVu Sans, Verdana, sans-serif", "size": 13},
        margin={"l": 75, "r": 20, "t": 45, "b": 60}, hoverlabel={"align": "left"},
        legend={"x": 0.99, "y": 0.99, "xanchor": "right", "bgcolor": "rgba(255,255,255,0.8)"},
        title={"text": f"Not shown: {', '.join(missing)}" if missing else "",
               "font": {"size": 12}, "x": 0.5, "y": 0.95},
    )  # fmt: skip
    axis = _log_axis(done["mse"].to_numpy(float))
    figure.update_xaxes(**axis, title_text="mean squared error", gridcolor="#eeeeee", showgrid=True)
    figure.update_yaxes(title_text="bits per dimension", gridcolor="#eeeeee", showgrid=True)
    return figure


def _trial_hover(row: Mapping[Any, Any], parameters: Sequence[str]) -> str:
    lines = [f"trial {row['trial']}", f"BPD {row['bpd']:.3f} (test {row['test_bpd']:.3f})",
             f"MSE {row['mse']:.5f} (test {row['test_mse']:.5f})"]  # fmt: skip
    return "<br>".join([*lines, *(f"{name} = {_written(row[name])}" for name in parameters)])


def _dots_per_pixel(pixels: int, inches: float) -> float:
    """About as many as fill the inches: a whole number, or one over a whole number."""
    wanted = inches * DPI / pixels
    return round(wanted) or 1 / round(1 / wanted)


def _steps(size: int, inches: float) -> tuple[float, float, float]:
    """Dots of a pixel, of the way from an image to the next, and between the two."""
    between = image_gap(size)
    dots = _dots_per_pixel(size + between, inches)
    return dots, dots * (size + between), dots * between


def _scaled(values: Array) -> Array:
    top = max(np.percentile(values, 99.5), 1e-9)
    return (255 * np.clip(values / top, 0, 1)).astype(np.uint8)


def _page(width: float, height: float) -> Figure:
    # rounded down to whole dots when saved, which must not lose one
    return Figure(figsize=((ceil(width) + 0.01) / DPI, (ceil(height) + 0.01) / DPI), dpi=DPI)


def _show(figure: Figure, image: Array, left: float, top: float, dots: float) -> None:
    """Show an image with its upper left corner at these dots from the figure's."""
    if not figure.axes:  # one for all images: axes take longer than what they show
        width, height = figure.get_size_inches() * DPI
        figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    width, height = dots * np.array(image.shape[1::-1])
    show_pixels(figure.axes[0], image, extent=(left, left + width, top + height, top))


def _write(figure: Figure, text: str, x: float, y: float, **how: Any) -> None:
    look: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": FONT}
    figure.text(*_fractions(figure, x, y), text, **look | how)


def _fractions(figure: Figure, x: Any, y: Any) -> tuple[Any, Any]:
    """Turn dots from the left and from the top into fractions from the left and the bottom."""
    width, height = figure.get_size_inches() * DPI
    return x / width, 1 - y / height


def _add_pca(figure: go.Figure, table: pd.DataFrame, has_dims: bool) -> None:
    by_dim = table.groupby("dim", as_index=False)["pca"].mean()
    if has_dims:
        where = {"x": by_dim["dim"], "y": by_dim["pca"], "mode": "lines+markers", "col": 2}
    else:
        by_dim = by_dim.loc[by_dim.index.repeat(50)]  # to be hovered over at any height
        bits = np.linspace(*_bits_shown(table), len(by_dim))
        where = {"x": by_dim["pca"], "y": bits, "mode": "lines", "col": 1}
    figure.add_scatter(
        **where, row=1, name="PCA", legendrank=2000, customdata=by_dim,
        line={"color": REFERENCE, "dash": "dash", "width": 1.5},
        hovertemplate="PCA<br>d = %{customdata[0]}<br>MSE %{customdata[1]:.5f}<extra></extra>",
    )  # fmt: skip


def _bits_shown(table: pd.DataFrame) -> tuple[float, float]:
    bits = table[["bpd", "bpd_low", "bpd_high"]].to_numpy(float).ravel()
    bits = bits[np.isfinite(bits)] if np.isfinite(bits).any() else np.zeros(1)
    margin = max(0.08 * np.ptp(bits), 0.01)
    return bits.min() - margin, bits.max() + margin


def _bars(rows: pd.DataFrame, name: str, colour: str) -> dict[str, Any]:
    above, below = rows[f"{name}_high"] - rows[name], rows[name] - rows[f"{name}_low"]
    return {"array": above, "arrayminus": below, "color": colour, "thickness": 1.5, "width": 4}


def _hover(parameter: str, row: Mapping[Any, Any]) -> str:
    numbers = (row[f"{name}{end}"] for name in ("bpd", "mse") for end in ("", "_low", "_high"))
    seed = f", seed {_written(row['seed'])}" if "seed" in row else ""
    return f"{parameter} = {_written(row['value'])}{seed}<br>" + HOVER.format(row["dim"], *numbers)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lay_out(figure: go.Figure, table: pd.DataFrame, parameter: str, has_dims: bool) -> None:
    figure.update_layout(
        template="simple_white", width=1040 if has_dims else 640, height=440,
        font={"family": "DejaVu Sans, Verdana, sans-serif", "size": 13},
        margin={"l": 75, "r": 20, "t": 45, "b": 60}, hoverlabel={"align": "left"},
        legend={"title": {"text": parameter}},
        title={"text": "Bars are 95% intervals", "font": {"size": 12}, "x": 0.5, "y": 0.95},
    )  # fmt: skip
    errors, bits = ["mse", "mse_low", "mse_high"], _bits_shown(table)
    axis = _log_axis(table[errors if has_dims else [*errors, "pca"]].to_numpy(float))
    figure.update_xaxes(**axis, title_text="mean squared error", row=1, col=1)
    figure.update_yaxes(range=bits, title_text="bits per dimension", row=1, col=1)
    if has_dims:
        axis = _log_axis(table[[*errors, "pca"]].to_numpy(float))
        dims = {"type": "log", "tickvals": sorted(table["dim"].unique())}
        figure.update_xaxes(**dims, title_text="dimension of the manifold, d", row=1, col=2)
        figure.update_yaxes(**axis, title_text="mean squared error", row=1, col=2)
    figure.update_xaxes(showgrid=True, gridcolor="#eeeeee")
    figure.update_yaxes(showgrid=True, gridcolor="#eeeeee")


def _log_axis(numbers: Array) -> dict[str, Any]:
    """A logarithmic axis around the numbers, with as few ticks as can be read off."""
    logs = np.log10(numbers[np.isfinite(numbers) & (numbers > 0)])
    if not logs.size:
        return {"type": "log"}
    margin = max(0.05 * np.ptp(logs), 0.02)
    low, high = logs.min() - margin, logs.max() + margin
    axis = {"type": "log", "range": (low, high)}
    for digits in TICKS:
        decades = 10.0 ** np.arange(np.floor(low), np.ceil(high))
        ticks = np.outer(decades, digits).ravel()
        ticks = ticks[(low <= np.log10(ticks)) & (np.log10(ticks) <= high)]
        if len(ticks) >= 3:
            return axis | {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return axis
