"""Manifolds with a known density: what a learned one can be checked against."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy  # whose parts load where they are used; its stats take half a second

from submanifold.common.errors import UserError

Array = np.ndarray

GRID = 513
NODES, WEIGHTS = np.polynomial.legendre.leggauss(12)

# The mean of e^(k (cos - 1)) over the directions of the plane and of space, a function of k.
AVERAGE: dict[int, Callable] = {
    2: lambda k: scipy.special.i0e(k),
    3: lambda k: scipy.special.exprel(-2 * k),
}


@dataclass(frozen=True)
class Manifold(ABC):
    """A density on a manifold of dimension d in R^D, and normal noise around it.

    Densities are with respect to the volume of R^D or, on the manifold, to its own (arc length,
    area); they are in nats. Points are rows of finite numbers; all arrays returned are float64.

    Attributes:
        ambient_dim: D.
        dim: d.
        noise: Standard deviation sigma of the noise in each of the D directions.
    """

    ambient_dim: ClassVar[int]
    dim: ClassVar[int]
    noise: float

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n points with their noise, shape (n, D)."""
        return self._draw(n, rng) + self.noise * rng.standard_normal((n, self.ambient_dim))

    def project(self, x: Array) -> Array:
        """Nearest points of the manifold, shape (n, D); one of them where several are nearest."""
        return self._project(np.asarray(x, dtype=float))

    def log_prob(self, x: Array) -> Array:
        r"""Log-density of the noisy data, :math:`\log \int p(y)\, N(x; y, \sigma^2 I)\, dy`.

        At x (n, D), in nats, shape (n,): in closed form or by the quadrature of :class:`Profile`.

        Raises:
            UserError: Without noise all points lie on the manifold, where no such density exists.
        """
        if not self.has_density:
            raise UserError(
                f"noise=0, and {type(self).__name__} data without noise lie on a manifold of "
                f"dimension {self.dim} and have no density in their {self.ambient_dim} dimensions; "
                "set noise above 0."
            )
        return self._log_prob(np.asarray(x, dtype=float))

    def manifold_log_prob(self, x: Array) -> Array:
        """Log-density on the manifold at the projections of x (n, D): nats, shape (n,)."""
        return self._manifold_log_prob(self.project(x))

    @property
    def has_density(self) -> bool:
        """Whether the noisy data have a density on R^D."""
        return self.noise > 0

    @property
    @abstractmethod
    def manifold_entropy(self) -> float:
        """Entropy of the density on the manifold, nats."""

    @property
    def view(self) -> Array:
        """Orthonormal columns by which a picture shows the points, shape (D, 2) or (D, 3)."""
        return np.eye(self.ambient_dim)

    @abstractmethod
    def _draw(self, n: int, rng: np.random.Generator) -> Array: ...

    @abstractmethod
    def _project(self, x: Array) -> Array: ...

    @abstractmethod
    def _log_prob(self, x: Array) -> Array: ...

    @abstractmethod
    def _manifold_log_prob(self, points: Array) -> Array: ...


@dataclass(frozen=True)
class LinearGaussian(Manifold):
    """A normal density in R^8, and the span of its three longest axes (method.md 5, case 1).

    It fills the space without any noise; the density on the manifold is its marginal there.

    Attributes:
        variances: Of the axes, the largest first.
        seed: Of the axes' directions.
    """

    ambient_dim = 8
    dim = 3
    has_density = True
    noise: float = 0.0
    variances: tuple[float, ...] = (4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025)
    seed: int = 0

    @property
    def axes(self) -> Array:
        """Orthonormal eigenvectors of the covariance, in the columns of (D, D)."""
        axes, triangle = np.linalg.qr(np.random.default_rng(self.seed).standard_normal((8, 8)))
        return axes * np.sign(triangle.diagonal())  # LAPACK's own signs may vary

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\frac12 \sum_{i \le d} \log 2 \pi e \lambda_i`."""
        return sum(math.log(2 * math.pi * math.e * v) for v in self.variances[: self.dim]) / 2

    @property
    def view(self) -> Array:
        """Two axes of the manifold and one normal to it, shape (D, 3)."""
        return self.axes[:, [0, 1, 3]]

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        return rng.standard_normal((n, 8)) * np.sqrt(self.variances) @ self.axes.T

    def _project(self, x: Array) -> Array:
        plane = self.axes[:, : self.dim]
        return x @ plane @ plane.T

    def _log_prob(self, x: Array) -> Array:
        return log_normal(x @ self.axes, np.array(self.variances) + self.noise**2).sum(1)

    def _manifold_log_prob(self, points: Array) -> Array:
        inside = (points @ self.axes)[:, : self.dim]
        return log_normal(inside, np.array(self.variances[: self.dim])).sum(1)


@dataclass(frozen=True)
class Shell(Manifold):
    r"""A circle or sphere with a density :math:`\propto e^{\kappa \cos}` (method.md 5, 7 and 8).

    The angle is the one to the mean direction m: von Mises and von Mises-Fisher, or uniform. With
    noise, at a distance r from the centre and M(k) the mean of :math:`e^{k \cos}` over all
    directions,

    .. math::
        p(x) = (2 \pi \sigma^2)^{-D/2} e^{-(r^2 + R^2) / 2 \sigma^2}
               M(|\kappa m + R x / \sigma^2|) / M(\kappa).

    Attributes:
        radius: R.
        concentration: kappa; 0 is uniform.
        mean: The direction of the largest density, of any length.
    """

    ambient_dim = 3
    dim = 2
    noise: float = 0.05
    radius: float = 1.0
    concentration: float = 0.0
    mean: tuple[float, ...] = (0.0, 0.0, 1.0)

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log \int e^{\kappa \cos} - \kappa\, E \cos`."""
        if self.concentration == 0:
            return self._log_size
        return float(self._law.entropy()) + self.dim * math.log(self.radius)

    @property
    def _law(self) -> Any:
        """Of the direction, for scipy."""
        if self.concentration == 0:
            return scipy.stats.uniform_direction(self.ambient_dim)
        return scipy.stats.vonmises_fisher(self._axis, self.concentration)  # type: ignore[arg-type]

    @property
    def _log_size(self) -> float:
        """Minus the largest log-density: the logarithm of the volume, if that is uniform."""
        average = AVERAGE[self.ambient_dim](self.concentration)
        return math.log(2 * math.pi * self.dim * self.radius**self.dim * average)

    @property
    def _axis(self) -> Array:
        return np.array(self.mean) / np.linalg.norm(self.mean)

    def _cosine(self, points: Array) -> Array:
        return points @ self._axis / self.radius

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        return self.radius * self._law.rvs(n, random_state=rng).reshape(n, self.ambient_dim)

    def _project(self, x: Array) -> Array:
        x = np.where(x.any(axis=1, keepdims=True), x, self._axis)
        return self.radius * x / np.hypot.reduce(x, axis=1, keepdims=True)

    def _log_prob(self, x: Array) -> Array:
        average, k = AVERAGE[self.ambient_dim], self.concentration
        distance, cosine = np.linalg.norm(x, axis=1), self._cosine(self._project(x))
        pull = self.radius * distance / self.noise**2
        # rounds to `pull` itself with k = 0: nothing is lost however large it is
        total = np.sqrt((pull**2 + k * (k + 2 * pull * cosine)).clip(0))
        log_ratio = np.log(average(total) / average(k)) + total - pull - k
        return log_normal(distance - self.radius, self.noise**2, self.ambient_dim) + log_ratio

    def _manifold_log_prob(self, points: Array) -> Array:
        return self.concentration * (self._cosine(points) - 1) - self._log_size


@dataclass(frozen=True)
class Sphere(Shell):
    """A sphere in space; see :class:`Shell`."""


@dataclass(frozen=True)
class VmfSphere(Shell):
    """A sphere whose points crowd around its north pole; see :class:`Shell`."""

    concentration: float = 10.0


@dataclass(frozen=True)
class Circle(Shell):
    """A circle in the plane; see :class:`Shell`."""

    ambient_dim = 2
    dim = 1
    noise: float = 0.1
    mean: tuple[float, ...] = (1.0, 0.0)


@dataclass(frozen=True)
class VonMisesCircle(Circle):
    """A larger circle whose points crowd around one of them; see :class:`Shell`."""

    radius: float = 3.0
    concentration: float = 8.0


@dataclass(frozen=True)
class Torus(Manifold):
    """A torus around the third axis, uniform in area (method.md 5, case 9).

    Attributes:
        major: Radius R of the circle in the middle of the tube.
        minor: Radius r < R of the tube.
    """

    ambient_dim = 3
    dim = 2
    noise: float = 0.05
    major: float = 2.0
    minor: float = 1.0

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log 4 \pi^2 R r`."""
        return math.log(4 * math.pi**2 * self.major * self.minor)

    @property
    def _profile(self) -> "Profile":
        ratio = self.minor / self.major
        return Profile(
            curve=lambda t: self.major + self.minor * np.exp(1j * t),
            velocity=lambda t: 1j * self.minor * np.exp(1j * t),
            log_density=lambda t: np.log((1 + ratio * np.cos(t)) / (2 * math.pi)),
            ends=(-math.pi, math.pi),
            curvature=1 / self.minor,
        )

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        angle, around = rng.uniform(-math.pi, math.pi, (2, n))
        # the outside has more area: mirrored to it is just what falls inside too often
        mirrored = rng.uniform(-1, 1, n) > self.minor / self.major * np.cos(angle)
        angle = np.where(mirrored, math.pi - angle, angle)
        return revolve(self._profile.curve(angle), np.exp(1j * around))

    def _project(self, x: Array) -> Array:
        y, turn = meridian(x)
        return revolve(self._profile.curve(np.angle(y - self.major)), turn)

    def _log_prob(self, x: Array) -> Array:
        return self._profile.log_prob(meridian(x)[0], self.noise, log_ring)

    def _manifold_log_prob(self, points: Array) -> Array:
        return np.full(len(points), -self.manifold_entropy)


@dataclass(frozen=True)
class SwissRoll(Manifold):
    r"""scikit-learn's swiss roll :math:`(t \cos t, h, t \sin t)` (method.md 5, case 9).

    Attributes:
        ends: t is uniform between them.
        height: h is uniform between 0 and this.
    """

    ambient_dim = 3
    dim = 2
    noise: float = 0.3
    ends: tuple[float, float] = (1.5 * math.pi, 4.5 * math.pi)
    height: float = 21.0

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log T H + \frac1T [\frac t2 \log(1 + t^2) - t + \arctan t]`, of the range T."""
        low, high = (t * math.log1p(t * t) / 2 - t + math.atan(t) for t in self.ends)
        return math.log(np.ptp(self.ends) * self.height) + (high - low) / float(np.ptp(self.ends))

    @property
    def _profile(self) -> "Profile":
        t_squared = self.ends[0] ** 2
        return Profile(
            curve=lambda t: t * np.exp(1j * t),
            velocity=lambda t: (1 + 1j * t) * np.exp(1j * t),
            log_density=lambda t: np.full_like(t, -math.log(np.ptp(self.ends))),
            ends=self.ends,
            curvature=(2 + t_squared) / (1 + t_squared) ** 1.5,
        )

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._roll(rng.uniform(*self.ends, n), rng.uniform(0, self.height, n))

    def _project(self, x: Array) -> Array:
        t = self._profile.nearest(x[:, 0] + 1j * x[:, 2])
        return self._roll(t, x[:, 1].clip(0, self.height))

    def _log_prob(self, x: Array) -> Array:
        half = self.height / 2
        # by symmetry both tails are lower ones, whose logarithms are good however far off
        off = -abs(x[:, 1] - half)
        upper, lower = (scipy.special.log_ndtr((off + edge) / self.noise) for edge in (half, -half))
        log_height = upper + np.log1p(-np.exp(lower - upper)) - math.log(self.height)
        return log_height + self._profile.log_prob(x[:, 0] + 1j * x[:, 2], self.noise, log_point)

    def _manifold_log_prob(self, points: Array) -> Array:
        t_squared = points[:, 0] ** 2 + points[:, 2] ** 2
        return -math.log(np.ptp(self.ends) * self.height) - np.log1p(t_squared) / 2

    def _roll(self, t: Array, h: Array) -> Array:
        y = self._profile.curve(t)
        return np.stack([y.real, h, y.imag], axis=1)


@dataclass(frozen=True)
class ThinSpiral(Manifold):
    r"""A spiral in the plane, :math:`\tfrac13 (-t \cos t, t \sin t)`, thinner the farther out.

    With :math:`t = 3 \pi \sqrt u` and u exponential of mean 0.3, so that t has a Rayleigh density
    (Horvat & Pfister 2021, whose data have no noise).
    """

    ambient_dim = 2
    dim = 1
    noise: float = 0.05

    _variance: ClassVar[float] = 1.35 * math.pi**2

    @property
    def manifold_entropy(self) -> float:
        r""":math:`H_t + \frac12 \mathrm{E} \log(1 + t^2) - \log 3`, :math:`H_t` that of t."""
        of_t = 1 + math.log(self._variance / 2) / 2 + np.euler_gamma / 2
        rate = 1 / (2 * self._variance)
        return of_t + math.exp(rate) * float(scipy.special.exp1(rate)) / 2 - math.log(3)

    def _profile(self, y: Array) -> "Profile":
        # where the density is down by e^-50, or a turn beyond what is farthest out
        far = max(math.sqrt(100 * self._variance), 3 * abs(y).max(initial=0) + 2 * math.pi)
        return Profile(
            curve=self._curve,
            velocity=self._velocity,
            log_density=self._log_density,
            ends=(0.0, far),
            curvature=6.0,
        )

    def _log_density(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(t / self._variance) - t**2 / (2 * self._variance)

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._at(np.sqrt(self._variance) * rng.rayleigh(size=n))

    def _project(self, x: Array) -> Array:
        y = x[:, 0] + 1j * x[:, 1]
        # neighbouring turns are 2 pi apart in t, so that no more than one is between
        offsets, step = np.linspace(-1.5 * math.pi, 1.5 * math.pi, 97, retstep=True)
        window = 3 * abs(y)[:, None] + offsets
        distance = abs(y[:, None] - self._curve(window.clip(0)))
        t = window[np.arange(len(y)), distance.argmin(1)]
        low, high = (t - step).clip(0), (t + step).clip(0)
        for _ in range(60):
            t = (low + high) / 2
            growing = ((self._curve(t) - y) * self._velocity(t).conj()).real > 0
            low, high = np.where(growing, low, t), np.where(growing, t, high)
        return self._at(t)

    def _log_prob(self, x: Array) -> Array:
        return by_octave(x[:, 0] + 1j * x[:, 1], self._profile, self.noise, log_point)

    def _manifold_log_prob(self, points: Array) -> Array:
        t = 3 * np.linalg.norm(points, axis=1)
        return self._log_density(t) - np.log1p(t**2) / 2 + math.log(3)

    def _curve(self, t: Array) -> Array:
        return -t * np.exp(-1j * t) / 3

    def _velocity(self, t: Array) -> Array:
        return (1j * t - 1) * np.exp(-1j * t) / 3

    def _at(self, t: Array) -> Array:
        return np.stack([-t * np.cos(t), t * np.sin(t)], axis=1) / 3


@dataclass(frozen=True)
class Paraboloid(Manifold):
    """The paraboloid z = (x^2 + y^2) / 2 over a standard normal (x, y) (method.md 5, case 9)."""

    ambient_dim = 3
    dim = 2
    noise: float = 0.05

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log 2 \pi e + \frac12 e^{1/2} E_1(1/2)`."""
        return math.log(2 * math.pi * math.e) + math.exp(0.5) * float(scipy.special.exp1(0.5)) / 2

    def _profile(self, y: Array) -> "Profile":
        # As far out as it matters to y = rho + i z: the nearest s solves s^3 + 2 (1 - z) s = 2 rho,
        # so it is at most sqrt(2 (z - 1)) + cbrt(2 rho). Beyond that by u, half the squared
        # distance is larger by u^4 / 8; where this is 50 sigma^2, the density is down by e^-50.
        nearest = np.sqrt(2 * (y.imag - 1).clip(0)) + np.cbrt(2 * y.real)
        return Profile(
            curve=lambda s: s + 0.5j * s**2,
            velocity=lambda s: 1 + 1j * s,
            log_density=lambda s: np.log(s) - s**2 / 2,
            ends=(0.0, nearest.max(initial=0) + (8 * 50 * self.noise**2) ** 0.25),
            curvature=1.0,
        )

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        flat = rng.standard_normal((n, 2))
        return np.column_stack([flat, (flat**2).sum(1) / 2])

    def _project(self, x: Array) -> Array:
        y, turn = meridian(x)
        profile = self._profile(y)
        return revolve(profile.curve(profile.nearest(y)), turn)

    def _log_prob(self, x: Array) -> Array:
        return by_octave(meridian(x)[0], self._profile, self.noise, log_ring)

    def _manifold_log_prob(self, points: Array) -> Array:
        squared = (points[:, :2] ** 2).sum(1)
        return -math.log(2 * math.pi) - squared / 2 - np.log1p(squared) / 2


MANIFOLDS: dict[str, type] = {
    "linear_gaussian": LinearGaussian,
    "circle": Circle,
    "von_mises_circle": VonMisesCircle,
    "sphere": Sphere,
    "vmf_sphere": VmfSphere,
    "torus": Torus,
    "swiss_roll": SwissRoll,
    "paraboloid": Paraboloid,
    "thin_spiral": ThinSpiral,
}


def manifold(name: str, noise: float | None = None) -> Manifold:
    """Build a manifold by its name in `MANIFOLDS`, with its own noise or another.

    Raises:
        UserError: The name is not known, or the noise is negative or not finite.
    """
    if name not in MANIFOLDS:
        raise UserError(f"name={name} is no manifold; known: {', '.join(MANIFOLDS)}")
    if noise is not None and not 0 <= noise < math.inf:
        raise UserError(f"noise={noise} is not possible; set it to 0 or above.")
    return MANIFOLDS[name]() if noise is None else MANIFOLDS[name](noise=noise)


def log_normal(distance: Array, variance: float | Array, dim: int = 1) -> Array:
    """Log-density of N(m, variance I) in R^dim at a distance from m, nats."""
    return -(distance**2) / (2 * variance) - dim / 2 * np.log(2 * math.pi * variance)


def log_point(y: Array, c: Array, noise: float) -> Array:
    """Log-density at y of the noisy point c of the complex plane, nats."""
    return log_normal(abs(y - c), noise**2, 2)


def log_ring(y: Array, c: Array, noise: float) -> Array:
    """Log-density in R^3 of a noisy ring; y and c are distance from its axis + i height; nats."""
    around = scipy.special.i0e(y.real * c.real / noise**2)
    return log_normal(abs(y - c), noise**2, 3) + np.log(around)


def meridian(x: Array) -> tuple[Array, Array]:
    """Split x (n, 3) in distance from the third axis + i height, and the turn e^(i phi)."""
    flat = x[:, 0] + 1j * x[:, 1]
    return abs(flat) + 1j * x[:, 2], np.exp(1j * np.angle(flat))


def revolve(y: Array, turn: Array) -> Array:
    """Undo :func:`meridian`."""
    return np.stack([y.real * turn.real, y.real * turn.imag, y.imag], axis=1)


@dataclass(frozen=True)
class Profile:
    """A curve in the complex plane and a density along it, from which surfaces are made.

    Attributes:
        curve: Parameters to points.
        velocity: Its derivative.
        log_density: Of the parameter, nats.
        ends: Range of the parameter.
        curvature: The largest, an inverse length.
    """

    curve: Callable[[Array], Array]
    velocity: Callable[[Array], Array]
    log_density: Callable[[Array], Array]
    ends: tuple[float, float]
    curvature: float

    def nearest(self, y: Array) -> Array:
        """Parameters (n,) of the points nearest to y (n,).

        At each local minimum of the distance on a grid, the zero of its derivative is bisected;
        if there is none, this leads to an end of the curve.
        """
        grid = np.linspace(*self.ends, GRID)
        nearest = np.empty(len(y))
        for rows in blocks(np.arange(len(y)), GRID):
            distance = abs(y[rows, None] - self.curve(grid))
            beside = np.pad(distance, ((0, 0), (1, 1)), constant_values=np.inf)
            row, i = np.nonzero((distance <= beside[:, :-2]) & (distance <= beside[:, 2:]))
            low, high = grid[(i - 1).clip(0)], grid[(i + 1).clip(max=GRID - 1)]
            for _ in range(60):
                t = (low + high) / 2
                growing = ((self.curve(t) - y[rows][row]) * self.velocity(t).conj()).real > 0
                low, high = np.where(growing, low, t), np.where(growing, t, high)
            best = np.lexsort((abs(self.curve(t) - y[rows][row]), row))
            nearest[rows] = t[best][np.searchsorted(row, np.arange(len(rows)))]
        return nearest

    def log_prob(
        self, y: Array, noise: float, kernel: Callable[[Array, Array, float], Array]
    ) -> Array:
        r"""Log-density of a mixture along the curve, :math:`\log \int q(t)\, k(y, c(t))\, dt`.

        At y (n,), in nats, shape (n,), for a kernel k: the density at y of a noisy point c.

        The curve is cut into pieces of nearly equal length, with the 12 nodes of Gauss and
        Legendre in each. Near the nearest point, at a distance delta, the integrand varies like
        a normal density of width sigma or like :math:`e^{-\delta s / \sigma^2}`; so pieces are
        shorter than 4 sigma, than :math:`20 \sigma^2 / \delta` and than the least radius of
        curvature. Left out are pieces on which it is :math:`e^{-50}` of its largest value. The
        relative error is below 1e-10 (measured), until far off 65,536 pieces are too few.
        """
        grid = np.linspace(*self.ends, GRID)
        length = np.append(0, np.cumsum(abs(np.diff(self.curve(grid)))))
        delta = abs(y - self.curve(self.nearest(y)))
        reach = np.sqrt(delta**2 + 100 * noise**2)
        finest = 1 / (4 * noise) + delta / (20 * noise**2) + self.curvature
        # powers of two, so that few cuts serve all points
        pieces = 2 ** np.ceil(np.log2(length[-1] * finest)).clip(0, 16).astype(int)
        result = np.empty(len(y))
        for count in np.unique(pieces):
            cuts = np.interp(np.linspace(0, length[-1], count + 1), length, grid)
            middle, half = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts) / 2
            for rows in blocks(np.flatnonzero(pieces == count), count):
                near = abs(y[rows, None] - self.curve(middle)) - length[-1] / count
                row, piece = np.nonzero(near <= reach[rows, None])
                t = middle[piece, None] + half[piece, None] * NODES
                terms = kernel(y[rows][row, None], self.curve(t), noise) + self.log_density(t)
                sums = scipy.special.logsumexp(terms + np.log(half[piece, None] * WEIGHTS), axis=1)
                first = np.searchsorted(row, np.arange(len(rows)))
                result[rows] = np.logaddexp.reduceat(sums, first)
        return result


def by_octave(
    y: Array,
    profile: Callable[[Array], Profile],
    noise: float,
    kernel: Callable[[Array, Array, float], Array],
) -> Array:
    """Log-density at y (n,) of a curve that has no end, of which points say how far it matters.

    Points of an octave together, or a far one's long curve would be cut for all.
    """
    octave = np.ceil(np.log2(1 + abs(y)))
    result = np.empty(len(y))
    for one in np.unique(octave):
        rows = octave == one
        result[rows] = profile(y[rows]).log_prob(y[rows], noise, kernel)
    return result


def blocks(rows: Array, width: int) -> Iterator[Array]:
    """Cut rows so that tables of this width stay at a million numbers, 16 MB."""
    if len(rows):
        yield from np.array_split(rows, 1 + len(rows) * width // 2**20)
