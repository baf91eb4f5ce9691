"""Figure 1: a Gaussian fitted to a density near curves, by two divergences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # submodules load on first use; scipy.stats takes half a second
from matplotlib.bezier import BezierSegment
from matplotlib.figure import Figure

CURVES = [  # control points of quadratic Bezier curves
    ((-2.7, -1.4), (-1.3, 0.7), (0.5, 1.7)),
    ((-1.3, -1.9), (0.3, -0.9), (2.4, -1.6)),
    ((1.3, -0.6), (2.4, 0.4), (2.2, 2.0)),
]
WEIGHTS, NOISE, SPACING = (0.45, 0.3, 0.25), 0.09, 0.06
X, Y = (np.arange(low + SPACING / 2, -low, SPACING) for low in (-4.5, -4.02))
POINTS = np.stack(np.meshgrid(X, Y), axis=-1).reshape(-1, 2)  #: Grid of the plane, (n, 2).

Array = np.ndarray


def densities_near_curves() -> tuple[list[Array], list[Array]]:
    """Return points (60, 2) of each curve and the density near it at :data:`POINTS`, (n,)."""
    noise = scipy.stats.multivariate_normal(np.zeros(2), NOISE**2)
    curves = [BezierSegment(control)(np.linspace(0, 1, 60)) for control in CURVES]
    parts = [
        weight * noise.pdf(POINTS[:, None] - curve).mean(1)
        for weight, curve in zip(WEIGHTS, curves, strict=True)
    ]
    return curves, parts


def kl_divergence(p: Array, q: Any) -> float:
    """Integrate p log(p / q) in nats, of a density p (n,) and a normal distribution q."""
    log_q = q.logpdf(POINTS)  # q itself would underflow
    return float((scipy.special.xlogy(p, p) - p * log_q).sum() * SPACING**2)


def js_divergence(p: Array, q: Any) -> float:
    """Integrate log 2 + 1/2 (p log p/(p + q) + q log q/(p + q)) in nats."""
    density = q.pdf(POINTS)
    entropies = (scipy.special.rel_entr(x, p + density) for x in (p, density))
    return float(np.log(2) + sum(x.sum() for x in entropies) * SPACING**2 / 2)


def fit_kl(p: Array) -> Any:
    """Return the Gaussian of minimal KL divergence, which has the moments of p."""
    cov = np.cov(POINTS.T, aweights=p, ddof=0)
    return scipy.stats.multivariate_normal(np.average(POINTS, 0, p), cov)


def fit_js(p: Array, starts: Sequence[Any]) -> Any:
    """Return the Gaussian of minimal JS divergence, the best of descents from several."""

    def gaussian(v: Array) -> Any:  # the matrix exponential is positive definite
        cov = scipy.linalg.expm(v[[2, 3, 3, 4]].reshape(2, 2))
        return scipy.stats.multivariate_normal(v[:2], cov)

    def loss(v: Array) -> float:
        return js_divergence(p, gaussian(v))

    initial = [np.hstack([q.mean, scipy.linalg.logm(q.cov)[np.tril_indices(2)]]) for q in starts]
    fits = [scipy.optimize.minimize(loss, start) for start in initial]
    return gaussian(min(fits, key=lambda fit: fit.fun).x)


def fitted_gaussians() -> Figure:
    """Draw Figure 1: a density near three curves, and the Gaussians of minimal KL and JS."""
    curves, parts = densities_near_curves()
    density = np.sum(parts, axis=0)
    by_kl = fit_kl(density)
    by_js = fit_js(density, [by_kl, *map(fit_kl, parts)])
    figure = Figure(figsize=(7.52, 2.85), layout="constrained")
    first, *others = figure.subplots(1, 3)
    for axes in (first, *others):
        axes.pcolormesh(X, Y, density.reshape(len(Y), len(X)), cmap="Greys", shading="gouraud")
        axes.set(xticks=[], yticks=[], xlim=(-3.3, 3.3), ylim=(-2.9, 2.8))
    first.set_title("Density $p$\nnear three curves", fontsize=9)
    for curve in curves:
        first.plot(*curve.T, color="#1f5fa8", linewidth=1)
    names = r"KL$(p\,\Vert\,q)$", "JS$(p, q)$"
    for axes, name, q in zip(others, names, (by_kl, by_js), strict=True):
        numbers = f"KL {kl_divergence(density, q):.2f}, JS {js_divergence(density, q):.3f} nats"
        axes.set_title(f"Gaussian $q$ of minimal {name}\n{numbers}", fontsize=9)
        deviations = np.sqrt(2 * (q.logpdf(q.mean) - q.logpdf(POINTS))).reshape(len(Y), len(X))
        axes.contour(X, Y, deviations, levels=(1, 2), colors="#d62728", linewidths=(1.4, 0.8))
    return figure
