"""Gaussians fitted to one density by different divergences."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from matplotlib.bezier import BezierSegment
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.linalg import expm, logm
from scipy.optimize import minimize
from scipy.special import rel_entr, xlogy
from scipy.stats import multivariate_normal

Array = np.ndarray

# quadratic Bezier curves: an end, the point both ends are drawn to, the other end
CURVES = (
    ((-2.7, -1.4), (-1.3, 0.7), (0.5, 1.7)),
    ((-1.3, -1.9), (0.3, -0.9), (2.4, -1.6)),
    ((1.3, -0.6), (2.4, 0.4), (2.2, 2.0)),
)
SHARES = (0.45, 0.3, 0.25)
THICKNESS, STEPS, SPACING = 0.09, 60, 0.06
EXTENT = (-4.5, 4.5, -4.02, 4.02)
X, Y = (np.arange(low + SPACING / 2, -low, SPACING) for low in EXTENT[::2])
FLAT = 1e-4

EDGES = {"left": 0.011, "right": 0.989, "bottom": 0.105, "top": 0.832, "wspace": 0.033}
CURVE, FIT, WIDTHS = "#1f5fa8", "#d62728", (1.4, 0.8)


class Density(NamedTuple):
    """Values (n,) of a density at points (n, 2) of a grid, each in a cell of some area."""

    points: Array
    values: Array
    area: float


class Gaussian(NamedTuple):
    """A normal density of the plane: its mean (2,) and its covariance (2, 2)."""

    mean: Array
    covariance: Array


def log_normal(points: Array, gaussian: Gaussian) -> Array:
    """Log-density of a Gaussian at points (n, 2), in nats, (n,)."""
    return multivariate_normal(*gaussian).logpdf(points)


def kl_divergence(p: Array, log_q: Array, area: float) -> float:
    """KL(p || q) in nats, from p and log q on a grid; q itself would round to zero."""
    return float((xlogy(p, p) - p * log_q).sum() * area)


def js_divergence(p: Array, q: Array, area: float) -> float:
    r"""Jensen-Shannon divergence in nats, from 0 to log 2, from values on a grid.

    .. math:: \log 2 + \frac12 \int p \log\frac{p}{p + q} + q \log\frac{q}{p + q}

    Mass outside the grid counts as mass where the other density is zero.
    """
    return float(np.log(2) + (rel_entr(p, p + q) + rel_entr(q, p + q)).sum() * area / 2)


def fit_kl(density: Density) -> Gaussian:
    """Fit the Gaussian q of the least KL(p || q): the one with p's mean and covariance."""
    x, weights = density.points, density.values
    return Gaussian(np.average(x, 0, weights), np.cov(x.T, aweights=weights, ddof=0))


def fit_js(density: Density, starts: Sequence[Gaussian]) -> Gaussian:
    """Fit the Gaussian of the least Jensen-Shannon divergence from a density.

    It has several minima where the density has several modes; the lowest that descents from the
    starts find is taken.

    Raises:
        RuntimeError: If no descent reached a minimum.
    """

    def gaussian(x: Array) -> Gaussian:  # the matrix exponential is positive definite
        return Gaussian(x[:2], expm(x[[2, 3, 3, 4]].reshape(2, 2)))

    def divergence(x: Array) -> float:
        q = np.exp(log_normal(density.points, gaussian(x)))
        return js_divergence(density.values, q, density.area)

    begin = [np.hstack([mean, logm(cov)[np.tril_indices(2)]]) for mean, cov in starts]
    best = min((minimize(divergence, each) for each in begin), key=lambda fit: fit.fun)
    # far from the density the divergence is flat, which ends a descent as a minimum does
    if np.abs(best.jac).max() > FLAT or best.fun > np.log(2) - FLAT:
        raise RuntimeError(f"found no minimum: {best.message}")
    return gaussian(best.x)


def curved_density() -> tuple[Density, list[Density]]:
    """Density near a few curves in the plane, and the part of it near each of them."""
    points = np.stack(np.meshgrid(X, Y), axis=-1).reshape(-1, 2)
    noise = multivariate_normal(np.zeros(2), THICKNESS**2)
    parts = [
        Density(points, share * noise.pdf(points[:, None] - _along(curve)).mean(1), SPACING**2)
        for share, curve in zip(SHARES, CURVES, strict=True)
    ]
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
    figure = Figure(figsize=(7.52, 2.85))
    first, *others = figure.subplots(1, 3, gridspec_kw=EDGES)
    for axes in (first, *others):
        values = density.values.reshape(len(Y), len(X))
        look = {"cmap": "Greys", "interpolation": "bilinear", "origin": "lower"}
        axes.imshow(values, extent=EXTENT, **look)
        axes.set(xticks=[], yticks=[], xlim=(-3.3, 3.3), ylim=(-2.9, 2.8))
        axes.spines[:].set(color="0.7", linewidth=0.6)
    first.set_title("Density $p$,\nnear three curves", fontsize=9)
    for curve in CURVES:
        first.plot(*_along(curve).T, color=CURVE, linewidth=1)
    names = r"KL$(p\,\Vert\,q)$", "JS$(p, q)$"
    for axes, name, fit in zip(others, names, (by_kl, by_js), strict=True):
        log_q = log_normal(density.points, fit)
        kl = kl_divergence(density.values, log_q, density.area)
        js = js_divergence(density.values, np.exp(log_q), density.area)
        title = f"Gaussian $q$ of the least {name}\nKL {kl:.2f}, JS {js:.3f} nats"
        axes.set_title(title, fontsize=9)
        deviations = np.sqrt(2 * (log_normal(fit.mean, fit) - log_q)).reshape(len(Y), len(X))
        axes.contour(X, Y, deviations, levels=(1, 2), colors=FIT, linewidths=WIDTHS)
    looks = ("0.6", 4), (CURVE, 1), (FIT, WIDTHS[0]), (FIT, WIDTHS[1])
    labels = "density $p$", "curve", "$q$ at one standard deviation", "at two"
    figure.legend(
        [Line2D([], [], color=color, linewidth=width) for color, width in looks], labels,
        loc="lower center", ncols=4, frameon=False, fontsize=8, borderaxespad=0.2,
        handlelength=1.6, columnspacing=1.8,
    )  # fmt: skip
    return figure


def _along(curve: Sequence[tuple[float, float]]) -> Array:
    return BezierSegment(curve)(np.linspace(0, 1, STEPS))


def _union(parts: Sequence[Density]) -> Density:
    return parts[0]._replace(values=np.sum([part.values for part in parts], axis=0))
