"""Gaussians fitted to a density by two divergences (Figure 1 of the paper)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.bezier import BezierSegment
from matplotlib.figure import Figure
from scipy.linalg import expm, logm
from scipy.optimize import minimize
from scipy.special import rel_entr, xlogy
from scipy.stats import multivariate_normal

Array = np.ndarray
Gaussian = Any  # a frozen multivariate_normal with mean (2,) and cov (2, 2)

# control points of quadratic Bezier curves
CURVES = (
    ((-2.7, -1.4), (-1.3, 0.7), (0.5, 1.7)),
    ((-1.3, -1.9), (0.3, -0.9), (2.4, -1.6)),
    ((1.3, -0.6), (2.4, 0.4), (2.2, 2.0)),
)
WEIGHTS, NOISE, SPACING = (0.45, 0.3, 0.25), 0.09, 0.06
X, Y = (np.arange(low + SPACING / 2, -low, SPACING) for low in (-4.5, -4.02))
CURVE_COLOR, FIT_COLOR = "#1f5fa8", "#d62728"


class Density(NamedTuple):
    """Values (n,) of a density at grid points (n, 2) with cells of equal area."""

    points: Array
    values: Array
    area: float


def kl_divergence(density: Density, q: Gaussian) -> float:
    """Return KL(density || q) in nats."""
    p, log_q = density.values, q.logpdf(density.points)  # q itself would underflow
    return float((xlogy(p, p) - p * log_q).sum() * density.area)


def js_divergence(density: Density, q: Gaussian) -> float:
    r"""Return the Jensen-Shannon divergence of a density p and q in nats.

    .. math:: \log 2 + \frac12 \int p \log\frac{p}{p + q} + q \log\frac{q}{p + q}

    Mass of q outside the grid counts as mass where p is zero.
    """
    p, q = density.values, q.pdf(density.points)
    return float(np.log(2) + (rel_entr(p, p + q) + rel_entr(q, p + q)).sum() * density.area / 2)


def fit_kl(density: Density) -> Gaussian:
    """Return the Gaussian q that minimizes KL(p || q); its moments are those of p."""
    x, p = density.points, density.values
    return multivariate_normal(np.average(x, 0, p), np.cov(x.T, aweights=p, ddof=0))


def fit_js(density: Density, starts: Sequence[Gaussian]) -> Gaussian:
    """Return the Gaussian of the smallest Jensen-Shannon divergence of descents from all starts."""

    def gaussian(x: Array) -> Gaussian:  # the matrix exponential is positive definite
        return multivariate_normal(x[:2], expm(x[[2, 3, 3, 4]].reshape(2, 2)))

    def objective(x: Array) -> float:
        return js_divergence(density, gaussian(x))

    initial = [np.hstack([q.mean, logm(q.cov)[np.tril_indices(2)]]) for q in starts]
    best = min((minimize(objective, x) for x in initial), key=lambda fit: fit.fun)
    return gaussian(best.x)


def gaussian_fits() -> Figure:
    """Draw a density near three curves, and Gaussians fitted to it by two divergences."""
    points = np.stack(np.meshgrid(X, Y), axis=-1).reshape(-1, 2)
    noise = multivariate_normal(np.zeros(2), NOISE**2)
    curves = [BezierSegment(control)(np.linspace(0, 1, 60)) for control in CURVES]
    parts = [
        Density(points, weight * noise.pdf(points[:, None] - curve).mean(1), SPACING**2)
        for weight, curve in zip(WEIGHTS, curves, strict=True)
    ]
    density = Density(points, np.sum([part.values for part in parts], axis=0), SPACING**2)
    by_kl = fit_kl(density)
    by_js = fit_js(density, [by_kl, *map(fit_kl, parts)])
    figure = Figure(figsize=(7.52, 2.85), layout="constrained")
    first, *others = figure.subplots(1, 3)
    values = density.values.reshape(len(Y), len(X))
    for axes in (first, *others):
        axes.pcolormesh(X, Y, values, cmap="Greys", shading="gouraud", rasterized=True)
        axes.set(xticks=[], yticks=[], xlim=(-3.3, 3.3), ylim=(-2.9, 2.8))
    first.set_title("Density $p$\nnear three curves", fontsize=9)
    for curve in curves:
        first.plot(*curve.T, color=CURVE_COLOR, linewidth=1)
    names = r"KL$(p\,\Vert\,q)$", "JS$(p, q)$"
    for axes, name, q in zip(others, names, (by_kl, by_js), strict=True):
        numbers = f"KL {kl_divergence(density, q):.2f}, JS {js_divergence(density, q):.3f} nats"
        axes.set_title(f"Gaussian $q$ of minimal {name}\n{numbers}", fontsize=9)
        deviations = np.sqrt(2 * (q.logpdf(q.mean) - q.logpdf(density.points)))
        axes.contour(X, Y, deviations.reshape(len(Y), len(X)), levels=(1, 2), colors=FIT_COLOR,
                     linewidths=(1.4, 0.8))  # fmt: skip
    caption = "Gray: density $p$. Blue: curves. Red: one and two standard deviations of $q$."
    figure.supxlabel(caption, fontsize=8)
    return figure
