"""Gaussians fitted to one density by different divergences."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import minimize
from scipy.special import rel_entr, xlogy

Array = np.ndarray

# quadratic Bezier curves: an end, the point both ends are drawn to, the other end
CURVES = (
    ((-2.7, -1.4), (-1.3, 0.7), (0.5, 1.7)),
    ((-1.3, -1.9), (0.3, -0.9), (2.4, -1.6)),
    ((1.3, -0.6), (2.4, 0.4), (2.2, 2.0)),
)
SHARES = (0.45, 0.3, 0.25)
THICKNESS, STEPS = 0.09, 60
X, Y, SPACING = (-4.5, 4.5), (-4.0, 4.0), 0.06
FLAT = 1e-4

SHOWN = {"xlim": (-3.3, 3.3), "ylim": (-2.9, 2.8)}
DEVIATIONS = (1, 2)
PANEL, GAP, HEAD, FOOT = 2.4, 0.08, 0.48, 0.3
INK, CURVE, FIT = "Greys", "#1f5fa8", "#d62728"


class Density(NamedTuple):
    """A density of the plane, at the points of a grid that hold nearly all its mass.

    Attributes:
        points: (n, 2), evenly spaced, at most as far apart as the density is thick.
        values: The density there, (n,), not negative.
        area: Of a cell of the grid.
    """

    points: Array
    values: Array
    area: float


class Gaussian(NamedTuple):
    """A normal density of the plane: its mean (2,) and its covariance (2, 2)."""

    mean: Array
    covariance: Array


def log_normal(points: Array, gaussian: Gaussian) -> Array:
    """Log-density of a Gaussian at points (n, 2), in nats, (n,)."""
    return _log_density(points, _parameters(gaussian))[0]


def kl_divergence(p: Array, log_q: Array, area: float) -> float:
    """Kullback-Leibler divergence KL(p || q) in nats, from values on a grid.

    Args:
        p: Density, (n,).
        log_q: Logarithm of the other one, (n,); far from its mean q itself would round to zero.
        area: Of a cell of the grid.
    """
    return float((xlogy(p, p) - p * log_q).sum() * area)


def js_divergence(p: Array, q: Array, area: float) -> float:
    r"""Jensen-Shannon divergence in nats, from 0 to log 2, from values on a grid.

    .. math:: \log 2 + \frac12 \int p \log\frac{p}{p + q} + q \log\frac{q}{p + q}

    Mass outside the grid counts as mass where the other density is zero.

    Args:
        p: Density, (n,).
        q: The other one, (n,).
        area: Of a cell of the grid.
    """
    return float(np.log(2) + (rel_entr(p, p + q) + rel_entr(q, p + q)).sum() * area / 2)


def fit_kl(density: Density) -> Gaussian:
    """Fit the Gaussian q of the least KL(p || q): the one with p's mean and covariance."""
    weights = density.values / density.values.sum()
    mean = weights @ density.points
    centred = density.points - mean
    return Gaussian(mean, (weights[:, None] * centred).T @ centred)


def fit_js(density: Density, starts: Sequence[Gaussian]) -> Gaussian:
    """Fit the Gaussian q of the least Jensen-Shannon divergence from p.

    Where p has several modes the divergence has several minima; it takes the lowest that descents
    from all the starts find.

    Args:
        density: What to fit to.
        starts: Where to begin, one or more.

    Raises:
        RuntimeError: If no descent reached a minimum.
    """
    fits = [
        minimize(_js_and_slope, _parameters(start), (density,), method="BFGS", jac=True)
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.fun)
    # far from the density the divergence is flat, which ends a descent as a minimum does
    if np.abs(best.jac).max() > FLAT or best.fun > np.log(2) - FLAT:
        raise RuntimeError(f"found no minimum: {best.message}")
    colour = np.linalg.inv(_whitener(best.x))
    return Gaussian(colour @ best.x[3:], colour @ colour.T)


def curved_density() -> tuple[Density, list[Density]]:
    """Density near a few curves in the plane, and the part of it near each of them."""
    axes = [np.arange(low, high, SPACING) for low, high in (X, Y)]
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    parts = []
    for share, curve in zip(SHARES, CURVES, strict=True):
        near = np.zeros(len(points))
        for centre in _bezier(curve):
            near += np.exp(log_normal(points, Gaussian(centre, THICKNESS**2 * np.eye(2))))
        parts.append(Density(points, share * near / STEPS, SPACING**2))
    return _union(parts), parts


def gaussian_fits() -> Figure:
    """Draw Figure 1: a density near three curves, and Gaussians fitted to it by two divergences.

    The Kullback-Leibler divergence, that of maximum likelihood, makes the Gaussian cover all three
    curves and the space between; the Jensen-Shannon divergence lets it settle on one.
    """
    density, parts = curved_density()
    by_kl = fit_kl(density)
    some = [pick for count in (1, 2) for pick in combinations(parts, count)]
    by_js = fit_js(density, [by_kl, *(fit_kl(_union(pick)) for pick in some)])
    figure, panels = _panels(density)
    panels[0].set_title("Density $p$,\nnear three curves", fontsize=9)
    for curve in CURVES:
        panels[0].plot(*_bezier(curve).T, color=CURVE, linewidth=1)
    _draw_fit(panels[1], r"KL$(p\,\Vert\,q)$", density, by_kl)
    _draw_fit(panels[2], "JS$(p, q)$", density, by_js)
    _draw_key(figure)
    return figure


def _bezier(curve: Sequence[tuple[float, float]]) -> Array:
    first, between, last = np.array(curve)
    t = np.linspace(0, 1, STEPS)[:, None]
    return (1 - t) ** 2 * first + 2 * t * (1 - t) * between + t**2 * last


def _union(parts: Sequence[Density]) -> Density:
    return parts[0]._replace(values=np.sum([part.values for part in parts], axis=0))


def _parameters(gaussian: Gaussian) -> Array:
    """Describe a Gaussian by y = A x - b, which is standard normal.

    A is the inverse of the Cholesky factor of the covariance.

    Returns:
        log A11, log A22, A21, b1, b2.
    """
    whitener = np.linalg.inv(np.linalg.cholesky(gaussian.covariance))
    return np.hstack([np.log(np.diag(whitener)), whitener[1, 0], whitener @ gaussian.mean])


def _whitener(parameters: Array) -> Array:
    (first, second), below = np.exp(parameters[:2]), parameters[2]
    return np.array([[first, 0], [below, second]])


def _log_density(points: Array, parameters: Array) -> tuple[Array, Array]:
    """Log-density (n,) and its derivatives by the parameters, (5, n)."""
    whitener = _whitener(parameters)
    white = points @ whitener.T - parameters[3:]
    value = parameters[:2].sum() - np.log(2 * np.pi) - (white**2).sum(1) / 2
    by_logs = 1 - white * points * np.diag(whitener)
    return value, np.stack([*by_logs.T, -white[:, 1] * points[:, 0], *white.T])


def _js_and_slope(parameters: Array, density: Density) -> tuple[float, Array]:
    p, area = density.values, density.area
    log_q, derivatives = _log_density(density.points, parameters)
    q = np.exp(log_q)
    return js_divergence(p, q, area), derivatives @ rel_entr(q, p + q) * area / 2


def _panels(density: Density) -> tuple[Figure, list[Axes]]:
    """Three panels in a row, each with the density as a shade of grey."""
    height = PANEL * np.ptp(SHOWN["ylim"]) / np.ptp(SHOWN["xlim"])
    whole = (3 * PANEL + 4 * GAP, height + HEAD + FOOT)
    figure, panels = Figure(figsize=whole), []
    x, y = map(np.unique, density.points.T)
    half = SPACING / 2
    for index in range(3):
        left = GAP + index * (PANEL + GAP)
        axes = figure.add_axes(
            (left / whole[0], FOOT / whole[1], PANEL / whole[0], height / whole[1])
        )
        axes.imshow(
            density.values.reshape(len(y), len(x)), cmap=INK, origin="lower", aspect="auto",
            extent=(x[0] - half, x[-1] + half, y[0] - half, y[-1] + half), interpolation="bilinear",
        )  # fmt: skip
        axes.set(xticks=[], yticks=[], **SHOWN)
        axes.spines[:].set(color="0.7", linewidth=0.6)
        panels.append(axes)
    return figure, panels


def _draw_fit(axes: Axes, name: str, density: Density, fit: Gaussian) -> None:
    p, log_q = density.values, log_normal(density.points, fit)
    kl = kl_divergence(p, log_q, density.area)
    js = js_divergence(p, np.exp(log_q), density.area)
    axes.set_title(f"Gaussian $q$ of the least {name}\nKL {kl:.2f}, JS {js:.3f} nats", fontsize=9)
    x, y = map(np.unique, density.points.T)
    peak = log_normal(fit.mean[None], fit)
    deviations = np.sqrt(2 * (peak - log_q)).reshape(len(y), len(x))
    axes.contour(x, y, deviations, levels=DEVIATIONS, colors=FIT, linewidths=(1.4, 0.8))


def _draw_key(figure: Figure) -> None:
    figure.legend(
        handles=[
            Line2D([], [], color="0.6", linewidth=4, label="density $p$"),
            Line2D([], [], color=CURVE, linewidth=1, label="curve"),
            Line2D([], [], color=FIT, linewidth=1.4, label="$q$ at one standard deviation"),
            Line2D([], [], color=FIT, linewidth=0.8, label="at two"),
        ],
        loc="lower center", ncols=4, frameon=False, fontsize=8, borderaxespad=0.2,
        handlelength=1.6, columnspacing=1.8,
    )  # fmt: skip
