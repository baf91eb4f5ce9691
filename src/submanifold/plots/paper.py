"""The paper's figures of images, and one of its claims."""

from collections.abc import Mapping
from string import ascii_lowercase

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import laplace

from submanifold.evaluation.intervals import Interval
from submanifold.plots.images import panel_grid, show, tile

Array = np.ndarray

WIDTH, MAX_PANEL = 7.0, 3.8  # width of a page, and largest width of a panel, in inches
SAMPLE_ROWS = 2


def sample_panels(panels: Mapping[str, Array], columns: int) -> Figure:
    """Draw Figures 3, 5, 6, 8, 9 and 10: a square of 8 x 8 images for each method."""
    columns = min(columns, len(panels))
    side = min(WIDTH / columns, MAX_PANEL)
    figure, grid = panel_grid(len(panels), columns, (side, side + 0.25), "compressed")
    for axes, letter, (name, images) in zip(grid, ascii_lowercase, panels.items(), strict=False):
        show(axes, tile(images[:64], 8))
        axes.set_xlabel(f"({letter}) {name}", fontsize=9)
    return figure


def delta_rows(originals: Array, by_delta: Mapping[float, tuple[Array, Array]]) -> Figure:
    r"""Draw Figure 4: originals, then reconstructions and samples for each :math:`\delta`."""
    columns = len(originals)
    rows = {"original": originals}
    for delta, (projections, samples) in by_delta.items():
        label = rf"$\delta = {delta:g}$".replace("inf", r"\infty")
        rows[f"{label}\nreconstructed"] = projections
        rows[f"{label}\ngenerated"] = samples[: SAMPLE_ROWS * columns]
    tiles = [tile(images, columns) for images in rows.values()]
    heights = [len(image) for image in tiles]
    height = sum(heights) / tiles[0].shape[1] * (WIDTH - 1) + 0.1 * len(rows)
    figure = Figure(figsize=(WIDTH, height), layout="compressed")
    grid = figure.subplots(len(rows), squeeze=False, height_ratios=heights).ravel()
    for axes, label, image in zip(grid, rows, tiles, strict=True):
        show(axes, image)
        axes.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
    return figure


def rejections(original: Array, projection: Array) -> dict[str, Array]:
    """Compare images (n, ...) with their projections, as arrays (n, 3, ...) by name.

    The difference is the absolute error, averaged over channels; the edges are its absolute
    Laplacian. Both are scaled so that their 99.5th percentile over all images is white.
    """
    difference = np.abs(original.astype(float) - projection).mean(1)
    edges = np.abs([*map(laplace, difference)])
    maps = {
        "original": original,
        "projection": projection,
        "difference": _scaled(difference),
        "edges": _scaled(edges),
    }
    n, _, height, width = original.shape
    return {name: np.broadcast_to(x, (n, 3, height, width)) for name, x in maps.items()}


def rejection_blocks(original: Array, projection: Array, per_row: int = 2) -> Figure:
    """Draw Figure 7: images, their projections, the differences, and edges of the differences."""
    maps, width = rejections(original, projection), original.shape[3]
    per_row = min(per_row, len(original))
    columns = 4 * per_row
    image = tile(interleave(maps), columns)
    inches = max(WIDTH, 0.7 * columns)
    size = inches, inches * len(image) / image.shape[1] + 0.25
    figure, (axes,) = panel_grid(1, 1, size, "compressed")
    show(axes, image)
    step = (image.shape[1] - width) / (columns - 1)
    axes.set_xticks(width / 2 + step * np.arange(columns), [*maps] * per_row, fontsize=7.5)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    return figure


def rejection_scheme(original: Array, projection: Array) -> Figure:
    """Draw Figure 2: each image as the sum of its projection and of the rest.

    The rest is gray where it is zero.
    """
    rest = np.clip(128 + original.astype(float) - projection, 0, 255).astype(np.uint8)
    columns = {
        "image $x$": original,
        "on the manifold\n$f^{-1}(u, 0)$": projection,
        "off the manifold\n$x - f^{-1}(u, 0)$": rest,
    }
    side = WIDTH / (2 * len(columns))
    figure, grid = panel_grid(len(columns) * len(original), len(columns), (side, side))
    for number, (axes, image) in enumerate(zip(grid, interleave(columns), strict=True)):
        show(axes, tile(image[None], 1))
        axes.set_ylabel(("", "=", "+")[number % 3], rotation=0, fontsize=12, va="center")
    for axes, title in zip(grid, columns, strict=False):
        axes.set_title(title, fontsize=9)
    return figure


def differences_by_steps(panels: Mapping[str, Mapping[int, Interval]]) -> Figure:
    """Draw the differences between two methods, with intervals, by the number of steps."""
    figure, grid = panel_grid(len(panels), 2, (WIDTH / 2, 2.4))
    for axes, (title, by_steps) in zip(grid, panels.items(), strict=False):
        values = [measured["value"] for measured in by_steps.values()]
        low, high = (
            [abs(measured[end] - measured["value"]) for measured in by_steps.values()]
            for end in ("low", "high")
        )
        axes.errorbar([*by_steps], values, (low, high), marker="o", capsize=3)
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks([*by_steps], [f"{steps:,}" for steps in by_steps])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("steps of a phase", fontsize=9)
    return figure


def interleave(by_name: Mapping[str, Array]) -> Array:
    """Return all images of the first number, then of the second, ..."""
    images = np.stack([*by_name.values()], axis=1)
    return images.reshape(-1, *images.shape[2:])


def _scaled(values: Array) -> Array:
    """Scale non-negative values (n, height, width) to uint8 (n, 1, height, width)."""
    largest = max(np.percentile(values, 99.5), 1e-9)
    return (255 * np.clip(values / largest, 0, 1)).astype(np.uint8)[:, None]
