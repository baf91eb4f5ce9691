"""A learned manifold beside the true one."""

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.spatial import cKDTree

Array = np.ndarray
Interval = tuple[float, float]

SURFACE, SAMPLES, LINES = 4000, 1000, 250
ELEVATIONS, AZIMUTH, CHECKED = range(16, 53, 6), -73, 2000  # degrees
NEIGHBOURS = 12
TITLES = ("True density", "Learned density", "Samples", "Projection")
NO_DENSITY = "Learned manifold\n(of another dimension: no density)"

WIDTH, GAP, HEAD, FOOT = 10.0, 0.1, 0.4, 0.5
PANEL = (WIDTH - 5 * GAP) / 4

COLOURS = mpl.colormaps["viridis"].with_extremes(bad="0.75")
MANIFOLD, CURVE, SAMPLE, POINT, PROJECTION = "0.85", "white", "#1f5fa8", "0.15", "#d62728"
LIGHT = (-0.45, 0.65, 0.61)  # to the left, above, and before the picture


class DensityGrid(NamedTuple):
    """Two densities over a rectangle of the plane.

    Attributes:
        x: First coordinates, evenly spaced, (w,).
        y: Second coordinates, evenly spaced, (h,).
        true: Log-density of the data at (x[j], y[i]) in nats, (h, w).
        learned: That of the model, likewise.
    """

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

    The two densities share one colour scale, from 0 to about the largest true one. With a grid they
    are those of the data over the plane, and the manifolds are thin curves; without, those on the
    manifolds. Points in space are drawn as lit surfaces, seen from where they hide least of
    themselves: what is far is paler, and samples and projections behind the surface are faint.

    Points that are not finite are left out; densities that are infinite or not a number are grey.

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
    is_plain = learned_density is None
    given = np.zeros(len(learned_points)) if learned_density is None else learned_density
    turn = _camera(true_points[:SURFACE]) if np.shape(true_points)[1] == 3 else np.eye(2)
    (true_points,), true_density = _rows(SURFACE, turn, true_points, values=true_density)
    (learned_points,), given = _rows(SURFACE, turn, learned_points, values=given)
    (samples,), _ = _rows(SAMPLES, turn, samples)
    (points, projections), _ = _rows(LINES, turn, points, projections)

    if grid is None:
        true, learned = _density(true_density), _density(given)
        x, y = _limits(true_points)
    else:
        true, learned = _density(grid.true), _density(grid.learned)
        x, y = _edges(grid.x), _edges(grid.y)
    top = _top(true, is_flat=grid is not None)
    norm = Normalize(0, top)
    figure, panels = _panels(x, y, framed=len(turn) == 2)

    if grid is None:
        _draw_surface(panels[0], true_points, COLOURS(norm(true))[:, :3])
        tint = to_rgb(MANIFOLD) if is_plain else COLOURS(norm(learned))[:, :3]
        _draw_surface(panels[1], learned_points, tint)
    else:
        for axes, density in zip(panels, (true, learned), strict=False):
            axes.imshow(
                density, cmap=COLOURS, norm=norm, extent=(*x, *y), origin="lower",
                interpolation="bilinear", aspect="auto",
            )  # fmt: skip
        _draw_points(panels[0], true_points, CURVE, 0.5, np.ones(len(true_points)))
        if not is_plain:
            _draw_points(panels[1], learned_points, CURVE, 0.5, np.ones(len(learned_points)))

    _draw_surface(panels[2], true_points, to_rgb(MANIFOLD))
    _draw_points(panels[2], samples, SAMPLE, 5, 0.6 * _visibility(samples, true_points))
    _draw_surface(panels[3], learned_points, to_rgb(MANIFOLD))
    seen = _visibility(projections, learned_points)
    panels[3].add_collection(
        LineCollection(
            np.stack([points[:, :2], projections[:, :2]], axis=1),  # type: ignore[arg-type]
            colors=_tinted(POINT, seen),
            linewidths=0.6,
        ),
        autolim=False,
    )
    _draw_points(panels[3], points, POINT, 3, seen)
    _draw_points(panels[3], projections, PROJECTION, 6, seen)

    for axes, title in zip(panels, TITLES, strict=True):
        axes.set_title(title, fontsize=10)
    coloured = panels[:2]
    if is_plain and grid is None:
        panels[1].set_title(NO_DENSITY, fontsize=8)
        coloured, learned = panels[:1], true
    label = "density on the manifold" if grid is None else "density"
    exceeded = bool(learned.compressed().max(initial=0) > 1.02 * top)
    _draw_scale(figure, coloured, norm, label, exceeded)
    _draw_key(panels[2], {"true manifold": MANIFOLD, "sample": SAMPLE})
    _draw_key(panels[3], {"test point": POINT, "projection": PROJECTION})
    return figure


def _camera(points: Array) -> Array:
    """Directions to the right, up and to the eye, in the columns of (3, 3).

    Of some elevations it takes the one from which most of the points are seen: into the end of a
    roll, through a ring, onto the bottom of a bowl.
    """
    cameras = [_from_above(elevation) for elevation in ELEVATIONS]
    turned = [_rows(CHECKED, camera, points)[0][0] for camera in cameras]
    return cameras[int(np.argmax([_visibility(each, each).sum() for each in turned]))]


def _from_above(elevation: float) -> Array:
    up, along = np.radians([elevation, AZIMUTH])
    right = np.array([-np.sin(along), np.cos(along), 0])
    eye = np.array([np.cos(up) * np.cos(along), np.cos(up) * np.sin(along), np.sin(up)])
    return np.stack([right, np.cross(eye, right), eye], axis=1)


def _rows(
    count: int, turn: Array, *points: Array, values: Array | None = None
) -> tuple[list[Array], Array]:
    """Turn the first rows, without those where a point is not finite, and take their values."""
    rows = [np.asarray(each[:count], dtype=float) for each in points]
    keep = np.all([np.isfinite(each).all(1) for each in rows], axis=0)
    taken = np.empty(0) if values is None else np.asarray(values[:count], dtype=float)[keep]
    return [each[keep] @ turn for each in rows], taken


def _density(log_density: Array) -> np.ma.MaskedArray:
    nats = np.asarray(log_density, dtype=float)
    is_unknown = np.isnan(nats) | np.isposinf(nats)
    return np.ma.masked_where(is_unknown, np.exp(np.clip(nats, -700, 700)))


def _top(density: np.ma.MaskedArray, is_flat: bool) -> float:
    """End of the colour scale; on a manifold an even density gets the colour in the middle."""
    known = density.compressed()
    if not known.any():
        return 1.0
    return float(known.max() if is_flat else max(np.percentile(known, 99), 2 * np.median(known)))


def _limits(points: Array) -> tuple[Interval, Interval]:
    """Rectangle around nearly all points, at most as high as wide."""
    if not len(points):
        return (-1, 1), (-1, 1)
    low, high = np.percentile(points[:, :2], [0.3, 99.7], axis=0)
    middle, size = (low + high) / 2, 1.16 * (high - low)
    width = max(*size, 1e-9)
    half = np.array([width, max(size[1], 0.62 * width)]) / 2
    (left, bottom), (right, top) = middle - half, middle + half
    return (left, right), (bottom, top)


def _edges(centres: Array) -> Interval:
    half = (centres[-1] - centres[0]) / max(1, len(centres) - 1) / 2
    return centres[0] - half, centres[-1] + half


def _panels(x: Interval, y: Interval, framed: bool) -> tuple[Figure, list[Axes]]:
    panel = PANEL * (y[1] - y[0]) / (x[1] - x[0])
    height = HEAD + panel + FOOT
    figure, panels = Figure(figsize=(WIDTH, height)), []
    for index in range(4):
        left = (GAP + index * (PANEL + GAP)) / WIDTH
        axes = figure.add_axes((left, FOOT / height, PANEL / WIDTH, panel / height))
        axes.set(xlim=x, ylim=y, xticks=[], yticks=[])
        axes.spines[:].set(visible=framed, color="0.8", linewidth=0.6)
        axes.patch.set_visible(framed)
        panels.append(axes)
    return figure, panels


def _draw_surface(axes: Axes, points: Array, colours: Array | tuple[float, float, float]) -> None:
    """Draw a disc in the tangent plane of each point, the nearest last: together, a surface.

    Args:
        axes: Where, with its limits set.
        points: To the right, up, and, in space, to the eye: (n, 2) or (n, 3).
        colours: RGB, of each (n, 3) or of all (3,).
    """
    if not len(points):
        return
    count = np.arange(1, min(NEIGHBOURS, len(points)) + 1)
    distances, neighbours = map(np.asarray, cKDTree(points).query(points, count))
    thinnest = 0.008 * np.ptp(axes.get_xlim())
    wanted = (1.4 * distances[:, -1]).clip(thinnest)
    # alone in a tail, a point would hide all there with a disc as large as the space around it
    largest = 1.75 * np.median(wanted)
    size, opacity = wanted.clip(max=largest), largest / wanted.clip(largest)
    colours = np.broadcast_to(colours, (len(points), 3))
    flat, angle, order = np.ones(len(points)), np.zeros(len(points)), np.arange(len(points))
    if points.shape[1] == 3:
        around = points[neighbours] - points[neighbours].mean(1, keepdims=True)
        normals = np.linalg.eigh(around.transpose(0, 2, 1) @ around)[1][:, :, 0]
        flat = abs(normals[:, 2]).clip(0.3)
        angle = np.degrees(np.arctan2(normals[:, 1], normals[:, 0]))
        order = points[:, 2].argsort(kind="stable")
        shade = 0.6 + 0.4 * abs(normals @ LIGHT)
        colours = 1 - (1 - colours * shade[:, None]) * (0.65 + 0.35 * _nearness(points))[:, None]
    frame = np.array([axes.get_xlim(), axes.get_ylim()])
    # a disc cut in two would show a frame where none is drawn
    room = (np.ptp(frame, axis=1) / 2 - abs(points[:, :2] - frame.mean(1))).min(1)
    size = size.clip(max=2 * room)
    order = order[room[order] > 0]
    axes.add_collection(
        EllipseCollection(
            (size * flat)[order], size[order], angle[order], units="x",
            offsets=points[order, :2], offset_transform=axes.transData,
            facecolors=np.column_stack([colours, opacity])[order], linewidths=0,
        ),
        autolim=False,
    )  # fmt: skip


def _nearness(points: Array) -> Array:
    """How near the eye points in space are, from 0 to 1, without regard to a few far off."""
    far, near = np.percentile(points[:, 2], [0.5, 99.5])
    return ((points[:, 2] - far) / max(near - far, 1e-9)).clip(0, 1)


def _draw_points(axes: Axes, points: Array, colour: str, size: float, opacity: Array) -> None:
    right, up = points[:, :2].T
    axes.scatter(right, up, s=size, c=_tinted(colour, opacity), linewidths=0)


def _tinted(colour: str, opacity: Array) -> Array:
    return np.column_stack([np.tile(to_rgb(colour), (len(opacity), 1)), opacity])


def _visibility(points: Array, surface: Array) -> Array:
    """Opacity of points, little where the surface passes well in front of them."""
    if points.shape[1] == 2 or not len(points) or not len(surface):
        return np.ones(len(points))
    count = np.arange(1, min(NEIGHBOURS, len(surface)) + 1)
    _, over = cKDTree(surface[:, :2]).query(points[:, :2], count)
    behind = surface[over, 2].max(1) - points[:, 2]
    far, near = np.percentile(surface[:, 2], [0.5, 99.5])
    return np.where(behind > 0.15 * (near - far), 0.2, 1)


def _draw_key(axes: Axes, entries: dict[str, str]) -> None:
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, linestyle="", label=label)
        for label, colour in entries.items()
    ]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=len(handles),
        frameon=False, fontsize=8, handletextpad=0.1, columnspacing=1.2,
    )  # fmt: skip


def _draw_scale(
    figure: Figure, panels: list[Axes], norm: Normalize, label: str, exceeded: bool
) -> None:
    """Draw the colour scale below the middle of its panels."""
    middle = (panels[0].get_position().x0 + panels[-1].get_position().x1) / 2
    width, height = 0.85 * PANEL / WIDTH, figure.get_figheight()
    axes = figure.add_axes((middle - width / 2, (FOOT - 0.14) / height, width, 0.08 / height))
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), cax=axes, orientation="horizontal",
        extend="max" if exceeded else "neither", ticks=MaxNLocator(4), format="%g",
    )  # fmt: skip
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=7, length=2, pad=1.5, color="0.5")
    axes.set_xlabel(label, fontsize=8, labelpad=1)
