"""Learned and true manifolds and densities in two or three dimensions."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import zscore

Array = np.ndarray

TITLES = ("True density", "Learned density", "Samples", "Projection")
NO_DENSITY = "Learned manifold\n(another dimension: densities not comparable)"
COLORMAP = mpl.colormaps["viridis"].with_extremes(bad="0.75")
COLORBAR = (0.15, 0.11, 0.2, 0.025)
SURFACE_COLOR, SAMPLE_COLOR, PROJECTION_COLOR = "0.85", "#1f5fa8", "#d62728"


def manifold_figure(
    true_points: Array,
    true_density: Array,
    learned_points: Array,
    learned_density: Array | None,
    samples: Array,
    points: Array,
    projections: Array,
    grid: tuple[Array, ...] | None = None,
) -> Figure:
    """Draw the true density, the learned density, samples, and projections side by side.

    The first 4,000 points (n, 2) or (n, 3) of the manifolds are drawn, 1,000 samples, and 250 test
    points with their projections. Both densities (n,), in nats, have the same color scale; there is
    no learned one if the manifolds have different dimensions. Points with non-finite coordinates
    are omitted; non-finite densities are gray. A grid of evenly spaced x (w,) and y (h,), and the
    true and learned log-density (h, w) on the plane, replaces the densities on the manifolds.
    """
    is_comparable = learned_density is not None
    learned_density = np.zeros(len(learned_points)) if learned_density is None else learned_density
    true_points, true_density = _finite(4000, true_points, true_density)
    learned_points, learned_density = _finite(4000, learned_points, learned_density)
    (samples,) = _finite(1000, samples)
    points, projections = _finite(250, points, projections)
    densities = (true_density, learned_density) if grid is None else grid[2:]
    true, learned = (np.ma.masked_invalid(np.exp(np.minimum(nats, 700))) for nats in densities)
    known = true.compressed()
    largest = known.max() if grid else max(np.percentile(known, 99), 2 * np.median(known))
    norm = Normalize(0, largest)  # a constant density on a manifold has the middle color

    figure, panels = _panels(true_points)
    manifolds = (true_points, true, True), (learned_points, learned, is_comparable)
    for axes, (manifold, density, has_density) in zip(panels, manifolds, strict=False):
        if grid is not None:
            axes.pcolormesh(
                *grid[:2], density, cmap=COLORMAP, norm=norm, shading="nearest", rasterized=True
            )
            axes.set(xlim=grid[0][[0, -1]], ylim=grid[1][[0, -1]])
            if has_density:
                axes.scatter(*manifold.T, s=0.5, c="white", linewidths=0)
        elif has_density:
            _surface(axes, manifold, COLORMAP(norm(density)))
        else:
            _surface(axes, manifold, SURFACE_COLOR)
            axes.set_title(NO_DENSITY, fontsize=8)
    bar = figure.colorbar(
        ScalarMappable(norm, COLORMAP),
        cax=figure.add_axes(COLORBAR),
        orientation="horizontal",
        extend="max",
        ticks=MaxNLocator(4),
    )
    bar.set_label("density" if grid else "density on the manifold", fontsize=8)
    bar.ax.tick_params(labelsize=7)

    _surface(panels[2], true_points, SURFACE_COLOR, label="true manifold")
    panels[2].scatter(*samples.T, s=5, c=SAMPLE_COLOR, label="sample", linewidths=0)
    _surface(panels[3], learned_points, SURFACE_COLOR)
    lines = np.stack([points, projections, np.full_like(points, np.nan)], axis=1)
    panels[3].plot(*lines.reshape(-1, points.shape[1]).T, color="0.15", linewidth=0.6)
    panels[3].scatter(*points.T, s=3, c="0.15", label="test point", linewidths=0)
    panels[3].scatter(*projections.T, s=6, c=PROJECTION_COLOR, label="projection", linewidths=0)
    for axes in panels[2:]:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=2,
            fontsize=8,
            frameon=False,
            handlelength=0.8,
        )
    return figure


def _panels(points: Array) -> tuple[Figure, Any]:
    is_flat = points.shape[1] == 2
    ends = np.percentile(points, [0.3, 99.7], axis=0)
    half = max(0.58 * np.ptp(ends, axis=0).max(), 1e-9)
    limits = ends.mean(0)[:, None] + [-half, half]
    figure = Figure(figsize=(10.0, 3.3))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.15, top=0.88, wspace=0.04)
    space = {} if is_flat else {"projection": "3d", "proj_type": "ortho", "computed_zorder": False}
    panels = figure.subplots(1, 4, sharex=is_flat, sharey=is_flat, subplot_kw=space)
    for axes, title in zip(panels, TITLES, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set(**dict(zip(("xlim", "ylim", "zlim"), limits, strict=False)))
        if is_flat:
            axes.set(xticks=[], yticks=[], aspect="equal")
        else:
            axes.set_box_aspect((1, 1, 1), zoom=1.4)
            axes.view_init(elev=55, azim=-73)
            axes.set_axis_off()
    return figure, panels


def _surface(axes: Any, points: Array, colors: Any, label: str | None = None) -> None:
    """Draw points so large that they look like a curve or a surface; darken distant points."""
    colors = np.broadcast_to(to_rgba_array(colors), (len(points), 4)).copy()
    look: dict[str, Any] = {"s": 9}
    if points.shape[1] == 3:
        look = {"s": 36, "depthshade": False}
        elevation, azimuth = np.radians([axes.elev, axes.azim])
        to_viewer = [np.cos(azimuth), np.sin(azimuth), np.tan(elevation)]
        depth = zscore(points @ to_viewer) if len(points) > 1 else np.zeros(len(points))
        colors[:, :3] *= 0.8 + 0.1 * np.clip(depth, -2, 2)[:, None]
    axes.scatter(*points.T, c=colors, label=label, linewidths=0, **look)


def _finite(count: int, *columns: Array) -> list[Array]:
    first = [np.asarray(column[:count], dtype=float) for column in columns]
    keep = np.all([np.isfinite(column).all(1) for column in first if column.ndim == 2], axis=0)
    return [column[keep] for column in first]
