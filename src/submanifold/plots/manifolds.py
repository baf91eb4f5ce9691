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
    true_points, true_density = _finite(4000, true_points, true_density)
    if learned_density is None:
        (learned_points,) = _finite(4000, learned_points)
    else:
        learned_points, learned_density = _finite(4000, learned_points, learned_density)
    figure, (true, learned, sampled, projected) = _panels(true_points)
    if grid is None:
        norm = _density_norm(_density(true_density))
        _draw_density(true, true_points, true_density, norm)
        _draw_density(learned, learned_points, learned_density, norm)
        _add_colorbar(figure, norm, "density on the manifold")
    else:
        x, y, *log_densities = grid
        norm = Normalize(0, _density(log_densities[0]).max())
        _draw_plane(true, x, y, log_densities[0], norm, true_points)
        points_with_density = None if learned_density is None else learned_points
        _draw_plane(learned, x, y, log_densities[1], norm, points_with_density)
        _add_colorbar(figure, norm, "density")
    _surface(sampled, true_points, SURFACE_COLOR, label="true manifold")
    (samples,) = _finite(1000, samples)
    sampled.scatter(*samples.T, s=5, c=SAMPLE_COLOR, label="sample", linewidths=0)
    _surface(projected, learned_points, SURFACE_COLOR)
    _draw_projections(projected, *_finite(250, points, projections))
    for axes in (sampled, projected):
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=2,
            fontsize=8,
            frameon=False,
            handlelength=0.8,
        )
    return figure


def _density(log_density: Array) -> np.ma.MaskedArray:
    """Return a density, masked where it is not finite."""
    return np.ma.masked_invalid(np.exp(np.minimum(log_density, 700)))


def _density_norm(true: np.ma.MaskedArray) -> Normalize:
    """Return a scale in which a constant density has the middle color."""
    known = true.compressed()
    return Normalize(0, max(np.percentile(known, 99), 2 * np.median(known)))


def _draw_density(axes: Any, points: Array, log_density: Array | None, norm: Normalize) -> None:
    """Draw the density on a manifold, or the manifold alone."""
    if log_density is None:
        _surface(axes, points, SURFACE_COLOR)
        axes.set_title(NO_DENSITY, fontsize=8)
    else:
        _surface(axes, points, COLORMAP(norm(_density(log_density))))


def _draw_plane(
    axes: Any, x: Array, y: Array, log_density: Array, norm: Normalize, manifold: Array | None
) -> None:
    """Draw the density on a plane, with the points of a manifold."""
    density = _density(log_density)
    axes.pcolormesh(x, y, density, cmap=COLORMAP, norm=norm, shading="nearest", rasterized=True)
    axes.set(xlim=x[[0, -1]], ylim=y[[0, -1]])
    if manifold is not None:
        axes.scatter(*manifold.T, s=0.5, c="white", linewidths=0)


def _draw_projections(axes: Any, points: Array, projections: Array) -> None:
    """Draw test points, their projections, and lines between them."""
    lines = np.stack([points, projections, np.full_like(points, np.nan)], axis=1)
    axes.plot(*lines.reshape(-1, points.shape[1]).T, color="0.15", linewidth=0.6)
    axes.scatter(*points.T, s=3, c="0.15", label="test point", linewidths=0)
    axes.scatter(*projections.T, s=6, c=PROJECTION_COLOR, label="projection", linewidths=0)


def _add_colorbar(figure: Figure, norm: Normalize, label: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, COLORMAP),
        cax=figure.add_axes(COLORBAR),
        orientation="horizontal",
        extend="max",
        ticks=MaxNLocator(4),
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


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
