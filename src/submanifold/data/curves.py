"""Plane curves with a density: nearest points, and the density of noisy points by quadrature."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy  # its submodules load when they are used; scipy.stats takes half a second

Array = np.ndarray

GRID = 513  # parameters among which the nearest point is searched
PIECES = 1024  # of the curve, each with 16 nodes: 2^14 in all
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def log_normal(distance: Array, variance: float | Array, dim: int = 1) -> Array:
    """Log-density of N(m, variance I) in R^dim at a distance from m, nats."""
    return -(distance**2) / (2 * variance) - dim / 2 * np.log(2 * math.pi * variance)


def log_point(y: Array, c: Array, noise: float) -> Array:
    """Log-density in R^2 of a noisy point c, nats."""
    return log_normal(abs(y - c), noise**2, 2)


def log_ring(y: Array, c: Array, noise: float) -> Array:
    """Log-density in R^3 of a noisy ring, nats; y and c are distance from its axis + i height."""
    around = scipy.special.i0e(y.real * c.real / noise**2)
    return log_normal(abs(y - c), noise**2, 3) + np.log(around)


@dataclass(frozen=True)
class Curve:
    """A curve in the complex plane and a density along it."""

    point: Callable[[Array], Array]  #: Maps parameters to points.
    velocity: Callable[[Array], Array]  #: The derivative of the points.
    log_density: Callable[[Array], Array]  #: Of the parameter, nats.
    ends: tuple[float, float]  #: Range of the parameter.
    #: Log-density at y of a noisy point c, by the standard deviation of the noise.
    kernel: Callable[[Array, Array, float], Array] = log_point

    def bisect(self, y: Array, low: Array, high: Array) -> Array:
        """Parameters between bounds where the distance to y stops decreasing."""
        for _ in range(60):
            t = (low + high) / 2
            growing = ((self.point(t) - y) * self.velocity(t).conj()).real > 0
            low, high = np.where(growing, low, t), np.where(growing, t, high)
        return t

    def nearest(self, y: Array) -> Array:
        """Parameters (n,) of the points nearest to y (n,): local minima on a grid, bisected."""
        grid = np.linspace(*self.ends, GRID)
        nearest = np.empty(len(y))
        for block in _blocks(np.arange(len(y)), GRID):
            distance = abs(y[block, None] - self.point(grid))
            padded = np.pad(distance, ((0, 0), (1, 1)), constant_values=np.inf)
            row, i = np.nonzero((distance <= padded[:, :-2]) & (distance <= padded[:, 2:]))
            target = y[block][row]
            t = self.bisect(target, grid[(i - 1).clip(0)], grid[(i + 1).clip(max=GRID - 1)])
            best = np.lexsort((abs(self.point(t) - target), row))
            nearest[block] = t[best][np.searchsorted(row, np.arange(len(block)))]
        return nearest

    def log_prob(self, y: Array, noise: float) -> Array:
        r"""Log-density of noisy points, :math:`\log \int q(t)\, k(y, c(t))\, dt`.

        The integral is a sum over a grid of 2^14 Gauss-Legendre nodes, without the pieces of the
        curve on which the integrand is below :math:`e^{-50}` of its maximum. The relative error is
        below 1e-7 (measured), except far away, where the integrand varies within a piece.
        """
        edges = np.linspace(*self.ends, PIECES + 1)
        middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1] - edges[0]) / 2
        longest = abs(np.diff(self.point(edges))).max()
        log_weights = np.log(half * WEIGHTS)
        reach = np.sqrt(abs(y - self.point(self.nearest(y))) ** 2 + 100 * noise**2)
        result = np.empty(len(y))
        for block in _blocks(np.arange(len(y)), PIECES):
            distance = abs(y[block, None] - self.point(middle))
            row, piece = np.nonzero(distance - longest <= reach[block, None])
            t = middle[piece, None] + half * NODES
            terms = self.kernel(y[block][row, None], self.point(t), noise) + self.log_density(t)
            sums = scipy.special.logsumexp(terms + log_weights, axis=1)
            first = np.searchsorted(row, np.arange(len(block)))
            result[block] = np.logaddexp.reduceat(sums, first)
        return result


def _blocks(rows: Array, width: int) -> Iterator[Array]:
    """Split rows so that tables of this width have at most a million numbers."""
    if len(rows):
        yield from np.array_split(rows, 1 + len(rows) * width // 2**20)
