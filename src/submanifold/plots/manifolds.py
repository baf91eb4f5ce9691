"""A learned manifold beside the true one."""

from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.artist import setp
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LightSource, Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import art3d, proj3d  # type: ignore[import-untyped]
from scipy.spatial import cKDTree

Array = np.ndarray

SURFACE, SAMPLES, LINES = 4000, 1000, 250
NEIGHBOURS, CORNERS = 12, 10
TITLES = ("True density", "Learned density", "Samples", "Projection")
NO_DENSITY = "Learned manifold\n(of another dimension: no density)"

SIZE = (10.0, 3.3)  # inches
EDGES = {"left": 0.01, "right": 0.99, "bottom": 0.15, "top": 0.88, "wspace": 0.04}
SCALE = (0.15, 0.11, 0.2, 0.025)
ELEVATIONS, AZIMUTH, ZOOM = range(16, 65, 6), -73, 0.84  # degrees
LIGHT = LightSource(azdeg=215, altdeg=45)

COLOURS = mpl.colormaps["viridis"].with_extremes(bad="0.75")
MANIFOLD, CURVE, SAMPLE, POINT, PROJECTION = "0.85", "white", "#1f5fa8", "0.15", "#d62728"

LEGEND: dict[str, Any] = {
    "loc": "upper center", "bbox_to_anchor": (0.5, 0.01), "ncols": 2, "fontsize": 8,
    "frameon": False, "markerscale": 2, "handlelength": 0.8, "handletextpad": 0.4,
}  # fmt: skip


class DensityGrid(NamedTuple):
    """Log-densities in nats over evenly spaced x (w,) and y (h,), true and learned (h, w)."""

    x: Array
    y: Array
    true: Array
    learned: Array


def manifold_figure(
    true_points: Array,
    true_density: Array,
    learned_points: Array,
    learned_density: Array | None,
    samples: Array,
    points: Array,
    projections: Array,
    grid: DensityGrid | None = None,
) -> Figure:
    """Draw true density, learned density, samples and projections in a row.

    The two densities share one colour scale. With a grid they are those over the plane, and the
    manifolds thin curves; without, those on the manifolds. In space these are lit surfaces, seen
    from where they hide least of themselves; what is behind them is faint. Points that are not
    finite are left out; densities that are infinite or not a number are grey.

    Args:
        true_points: On the true manifold, (n, 2) or (n, 3); the first 4,000 are taken. A surface
            needs about as many to be closed.
        true_density: Log-density on the manifold at these, nats, (n,).
        learned_points: On the learned manifold, (m, 2) or (m, 3); the first 4,000 are taken.
        learned_density: Log-density on the learned manifold at these, nats, (m,); None where its
            dimension differs from the true one, and densities cannot be compared.
        samples: That the model generated, (k, 2) or (k, 3); the first 1,000 are taken.
        points: Of the data, (l, 2) or (l, 3); the first 250 are taken.
        projections: Theirs onto the learned manifold, likewise.
        grid: Densities of the plane, for points with two coordinates.
    """
    is_comparable = learned_density is not None
    if learned_density is None:
        learned_density = np.zeros(len(learned_points))
    true_points, true_density = _finite(SURFACE, true_points, true_density)
    learned_points, learned_density = _finite(SURFACE, learned_points, learned_density)
    (samples,) = _finite(SAMPLES, samples)
    points, projections = _finite(LINES, points, projections)
    true, learned = map(_density, (true_density, learned_density) if grid is None else grid[2:])
    norm = Normalize(0, _top(true, grid is not None))
    limits = _around(true_points) if grid is None else np.array([_edges(grid.x), _edges(grid.y)])
    figure, (first, second, third, fourth) = _panels(limits, true_points)

    left = (first, true_points, true, True), (second, learned_points, learned, is_comparable)
    for axes, manifold, density, is_known in left:
        if grid is None:
            _draw_surface(axes, manifold, COLOURS(norm(density)) if is_known else MANIFOLD)
            continue
        look = {"cmap": COLOURS, "norm": norm, "origin": "lower", "interpolation": "bilinear"}
        axes.imshow(density, extent=limits.ravel(), **look)
        if is_known:
            axes.scatter(*manifold.T, s=0.5, c=CURVE, linewidths=0)
    if grid is None and not is_comparable:
        second.set_title(NO_DENSITY, fontsize=8)
        learned = true
    _draw_scale(figure, norm, learned, "density on the manifold" if grid is None else "density")

    _draw_surface(third, true_points, MANIFOLD)
    third.scatter(*true_points[:0].T, s=5, c=MANIFOLD, label="true manifold")
    seen = _visibility(third, samples, true_points)
    _draw_dots(third, samples, "sample", 5, to_rgba_array(SAMPLE, 0.7 * seen))
    _draw_surface(fourth, learned_points, MANIFOLD)
    seen = _visibility(fourth, projections, learned_points)
    colours, lines = to_rgba_array(POINT, seen), np.stack([points, projections], axis=1)
    kind: Any = LineCollection if len(limits) == 2 else art3d.Line3DCollection
    fourth.add_collection(kind(lines, colors=colours, linewidths=0.6), autolim=False)
    _draw_dots(fourth, points, "test point", 3, colours)
    _draw_dots(fourth, projections, "projection", 6, to_rgba_array(PROJECTION, seen))
    for axes in (third, fourth):
        setp(axes.legend(**LEGEND).legend_handles, alpha=1)
    return figure


def _finite(count: int, *columns: Array) -> list[Array]:
    """Take the first rows, without those where a point, not its density, is not finite."""
    rows = [np.asarray(each[:count], dtype=float) for each in columns]
    keep = np.all([np.isfinite(each).all(1) for each in rows if each.ndim == 2], axis=0)
    return [each[keep] for each in rows]


def _density(nats: Array) -> np.ma.MaskedArray:
    with np.errstate(over="ignore"):
        return np.ma.masked_invalid(np.exp(np.asarray(nats, dtype=float)))


def _top(density: np.ma.MaskedArray, is_flat: bool) -> float:
    """End of the colour scale; on a manifold an even density gets the colour in the middle."""
    known = density.compressed()
    if not known.any():
        return 1.0
    return float(known.max() if is_flat else max(np.percentile(known, 99), 2 * np.median(known)))


def _around(points: Array) -> Array:
    """Ends of the axes around nearly all points, (dimensions, 2); in the plane, of a square."""
    some = points if len(points) else np.outer([-1, 1], np.ones(points.shape[1]))
    ends = np.percentile(some, [0.3, 99.7], axis=0).T
    half = 0.58 * np.ptp(ends, axis=1, keepdims=True)
    longest = max(half.max(), 1e-9)
    half = half.clip(longest if len(ends) == 2 else 0.1 * longest)
    return ends.mean(1, keepdims=True) + half * [-1, 1]


def _edges(centres: Array) -> tuple[float, float]:
    half = (centres[-1] - centres[0]) / max(1, len(centres) - 1) / 2
    return centres[0] - half, centres[-1] + half


def _panels(limits: Array, points: Array) -> tuple[Figure, Any]:
    figure, sides = Figure(figsize=SIZE), np.ptp(limits, axis=1)
    space = {"projection": "3d", "computed_zorder": False, "proj_type": "ortho"}
    panels = figure.subplots(1, 4, gridspec_kw=EDGES, subplot_kw=space if len(sides) == 3 else {})
    for axes, title in zip(panels, TITLES, strict=True):
        axes.set(xticks=[], yticks=[], xlim=limits[0], ylim=limits[1])
        axes.set_title(title, fontsize=10)
        if len(sides) == 2:
            axes.set_aspect("equal")
            axes.spines[:].set(color="0.8", linewidth=0.6)
        else:
            axes.set(zlim=limits[2])
            axes.set_box_aspect(sides, zoom=ZOOM * np.linalg.norm(sides) / sides.max())
            axes.set_axis_off()
    if len(sides) == 3:
        elevation = max(ELEVATIONS, key=lambda each: _seen(panels[0], points, each))
        for axes in panels:
            axes.view_init(elevation, AZIMUTH)
    return figure, panels


def _seen(axes: Any, points: Array, elevation: int) -> float:
    """How much of a surface is seen: high up into a bowl, less so into a roll or through a ring."""
    axes.view_init(elevation, AZIMUTH)
    return _visibility(axes, points, points).sum()


def _visibility(axes: Any, points: Array, surface: Array) -> Array:
    """Opacity of points, little where the surface passes well in front of them."""
    if points.shape[1] == 2 or not len(points) or not len(surface):
        return np.ones(len(points))
    x, y, depth = proj3d.proj_transform(*points.T, axes.get_proj())
    *plane, depths = proj3d.proj_transform(*surface.T, axes.get_proj())
    count = np.arange(1, min(NEIGHBOURS, len(surface)) + 1)
    _, over = cKDTree(np.stack(plane, axis=1)).query(np.stack([x, y], axis=1), count)
    near, far = np.percentile(depths, [0.5, 99.5])
    return np.where(depth - depths[over].min(1) > 0.15 * (far - near), 0.2, 1)


def _draw_surface(axes: Any, points: Array, colours: Any) -> None:
    """Draw a dot at each point of the plane; in space, a disc in the tangent plane of each."""
    if points.shape[1] == 2 or not len(points):
        axes.scatter(*points.T, s=9, c=colours, linewidths=0)
        return
    count = np.arange(1, min(NEIGHBOURS, len(points)) + 1)
    distances, neighbours = map(np.asarray, cKDTree(points).query(points, count))
    around = points[neighbours] - points[:, None]
    _, across, along = np.linalg.eigh(around.swapaxes(1, 2) @ around)[1].transpose(2, 0, 1)
    across *= np.sign(np.cross(across, along) @ LIGHT.direction)[:, None]  # lit on both sides
    radius = 0.7 * distances[:, -1].clip(0.005 * np.ptp(axes.get_xlim()))
    # alone in a tail, a point would hide all there with a disc as large as the space around it
    radius = radius.clip(max=1.75 * np.median(radius))[:, None, None]
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)[:, None]
    rims = across[:, None] * np.cos(angles) + along[:, None] * np.sin(angles)
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()])
    inside = ((low < points) & (points < high)).all(1)  # a disc that is cut would show a frame
    discs = art3d.Poly3DCollection(
        (points[:, None] + radius * rims)[inside], linewidths=0, shade=True, lightsource=LIGHT,
        facecolors=np.broadcast_to(to_rgba_array(colours), (len(points), 4))[inside],
    )  # fmt: skip
    axes.add_collection(discs, autolim=False)


def _draw_dots(axes: Any, points: Array, label: str, size: float, colours: Array) -> None:
    how = {"depthshade": False} if points.shape[1] == 3 else {}
    axes.scatter(*points.T, s=size, c=colours, label=label, linewidths=0, **how)


def _draw_scale(figure: Figure, norm: Normalize, shown: np.ma.MaskedArray, label: str) -> None:
    is_exceeded = shown.compressed().max(initial=0) > 1.02 * float(norm.vmax or 0)
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), cax=figure.add_axes(SCALE), orientation="horizontal",
        extend="max" if is_exceeded else "neither", ticks=MaxNLocator(4), format="%g",
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2, pad=1.5, color="0.5")
    bar.set_label(label, fontsize=8, labelpad=1)
