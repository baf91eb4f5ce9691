"""Manifolds in R^D, densities on them, and normal noise around them."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy  # its submodules load when they are used; scipy.stats takes half a second

from submanifold.common.errors import UserError
from submanifold.data.curves import Array, Curve, log_normal, log_ring


@dataclass(frozen=True)
class Manifold(ABC):
    """A density on a manifold of dimension d in R^D, with isotropic normal noise around it.

    Densities are in nats, with respect to the volume of R^D or, on the manifold, to its own (arc
    length or area). Arrays are float64.
    """

    ambient_dim: ClassVar[int] = 3  #: Dimension D of the space.
    dim: ClassVar[int] = 2  #: Dimension d of the manifold.
    noise: float = 0.05  #: Standard deviation sigma of the noise in each of the D directions.

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n noisy points, (n, D)."""
        return self._draw(n, rng) + self.noise * rng.standard_normal((n, self.ambient_dim))

    @abstractmethod
    def project(self, x: Array) -> Array:
        """Nearest points of the manifold to x (n, D); one of them if several are nearest."""

    def log_prob(self, x: Array) -> Array:
        r"""Log-density at x (n, D) with noise, :math:`\log \int p(y)\, N(x; y, \sigma^2 I)\, dy`.

        In closed form, or by the quadrature of :meth:`.curves.Curve.log_prob`.
        """
        if not self.has_density:
            raise UserError(
                f"noise: expected more than 0, got {self.noise}: without noise, points on a "
                f"manifold of dimension {self.dim} have no density in {self.ambient_dim} "
                "dimensions. Increase it."
            )
        return self._log_prob(x)

    def manifold_log_prob(self, x: Array) -> Array:
        """Log-density on the manifold at the projections of x (n, D), nats."""
        return self._manifold_log_prob(self.project(x))

    @property
    def has_density(self) -> bool:
        """Whether noisy data have a density in R^D."""
        return self.noise > 0

    @property
    @abstractmethod
    def manifold_entropy(self) -> float:
        """Entropy of the density on the manifold, nats."""

    @property
    def view(self) -> Array:
        """Orthonormal columns on which figures project the points, (D, 2) or (D, 3)."""
        return np.eye(self.ambient_dim)

    @abstractmethod
    def _draw(self, n: int, rng: np.random.Generator) -> Array: ...

    @abstractmethod
    def _log_prob(self, x: Array) -> Array: ...

    @abstractmethod
    def _manifold_log_prob(self, points: Array) -> Array: ...


@dataclass(frozen=True)
class LinearGaussian(Manifold):
    """A normal density in R^8, and the span of its three longest axes (:ref:`theory-5`, case 1).

    It has a density in R^8 without noise; the density on the manifold is its marginal there.
    """

    ambient_dim = 8
    dim = 3
    has_density = True
    noise: float = 0.0
    #: Variances along the axes, in descending order.
    variances: tuple[float, ...] = (4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025)
    seed: int = 0  #: Seed of the directions of the axes.

    @property
    def axes(self) -> Array:
        """Orthonormal eigenvectors of the covariance, in the columns of (D, D)."""
        axes, triangle = np.linalg.qr(np.random.default_rng(self.seed).standard_normal((8, 8)))
        return axes * np.sign(triangle.diagonal())  # LAPACK's signs may vary

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\frac12 \sum_{i \le d} \log 2 \pi e \lambda_i`."""
        return sum(math.log(2 * math.pi * math.e * v) for v in self.variances[: self.dim]) / 2

    @property
    def view(self) -> Array:
        """Two axes of the manifold and one normal to it, (D, 3)."""
        return self.axes[:, [0, 1, 3]]

    def project(self, x: Array) -> Array:
        """Orthogonal projection onto the first three axes."""
        plane = self.axes[:, : self.dim]
        return x @ plane @ plane.T

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        return rng.standard_normal((n, 8)) * np.sqrt(self.variances) @ self.axes.T

    def _log_prob(self, x: Array) -> Array:
        return log_normal(x @ self.axes, np.array(self.variances) + self.noise**2).sum(1)

    def _manifold_log_prob(self, points: Array) -> Array:
        inside = (points @ self.axes)[:, : self.dim]
        return log_normal(inside, np.array(self.variances[: self.dim])).sum(1)


@dataclass(frozen=True)
class Sphere(Manifold):
    r"""A sphere or circle, density :math:`\propto e^{\kappa \cos}` (:ref:`theory-5`, cases 7, 8).

    The angle is the one to the mean direction m: von Mises and von Mises-Fisher distributions. With
    noise, at a distance r from the centre, with M(k) the mean of :math:`e^{k \cos}` over all
    directions,

    .. math::
        p(x) = (2 \pi \sigma^2)^{-D/2} e^{-(r^2 + R^2) / 2 \sigma^2}
               M(|\kappa m + R x / \sigma^2|) / M(\kappa).
    """

    radius: float = 1.0  #: Radius R.
    concentration: float = 0.0  #: kappa; 0 is uniform.
    mean: tuple[float, ...] = (0.0, 0.0, 1.0)  #: Direction of the largest density.

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log \int e^{\kappa \cos} - \kappa\, E \cos`."""
        if self.concentration == 0:
            return self._log_volume
        return float(self._directions.entropy()) + self.dim * math.log(self.radius)

    @property
    def _directions(self) -> Any:
        if self.concentration == 0:
            return scipy.stats.uniform_direction(self.ambient_dim)
        return scipy.stats.vonmises_fisher(self._axis, self.concentration)  # type: ignore[arg-type]

    @property
    def _log_volume(self) -> float:
        """Minus the largest log-density: the logarithm of the volume, if that is uniform."""
        mean = self._mean_ratio(self.concentration)
        return math.log(2 * math.pi * self.dim * self.radius**self.dim * mean)

    @property
    def _axis(self) -> Array:
        return np.array(self.mean) / np.linalg.norm(self.mean)

    def _mean_ratio(self, k: Any) -> Any:
        """Mean of e^(k (cos - 1)) over all directions."""
        return scipy.special.i0e(k) if self.dim == 1 else scipy.special.exprel(-2 * k)

    def project(self, x: Array) -> Array:
        """Scale x to the radius; the centre is projected to the mean."""
        x = np.where(x.any(axis=1, keepdims=True), x, self._axis)
        return self.radius * x / np.hypot.reduce(x, axis=1, keepdims=True)

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        return self.radius * self._directions.rvs(n, random_state=rng).reshape(n, self.ambient_dim)

    def _log_prob(self, x: Array) -> Array:
        k = self.concentration
        distance, cosine = np.linalg.norm(x, axis=1), self.project(x) @ self._axis / self.radius
        pull = self.radius * distance / self.noise**2
        # for k = 0 this is exactly `pull`, however large
        total = np.sqrt((pull**2 + k * (k + 2 * pull * cosine)).clip(0))
        log_ratio = np.log(self._mean_ratio(total) / self._mean_ratio(k)) + total - pull - k
        return log_normal(distance - self.radius, self.noise**2, self.ambient_dim) + log_ratio

    def _manifold_log_prob(self, points: Array) -> Array:
        return self.concentration * (points @ self._axis / self.radius - 1) - self._log_volume


@dataclass(frozen=True)
class VmfSphere(Sphere):
    """A von Mises-Fisher distribution on the sphere; see :class:`Sphere`."""

    concentration: float = 10.0


@dataclass(frozen=True)
class Circle(Sphere):
    """A uniform circle in the plane; see :class:`Sphere`."""

    ambient_dim = 2
    dim = 1
    noise: float = 0.1
    mean: tuple[float, ...] = (1.0, 0.0)


@dataclass(frozen=True)
class VonMisesCircle(Circle):
    """A von Mises distribution on a larger circle; see :class:`Sphere`."""

    radius: float = 3.0
    concentration: float = 8.0


@dataclass(frozen=True)
class CurveManifold(Manifold):
    """A manifold generated by a plane curve: a curve, a cylinder or a surface of revolution.

    Subclasses split points x into coordinates y in the plane of the curve and others, and back.
    The default is a surface of revolution around the third axis.
    """

    @abstractmethod
    def _curve(self, y: Array) -> Curve:  # at least as long as it matters for points y
        ...

    def _split(self, x: Array) -> tuple[Array, Array]:
        """Distance from the third axis + i height, and the rotation e^(i phi)."""
        flat = x[:, 0] + 1j * x[:, 1]
        return abs(flat) + 1j * x[:, 2], np.exp(1j * np.angle(flat))

    def _join(self, y: Array, other: Array) -> Array:
        return np.stack([y.real * other.real, y.real * other.imag, y.imag], axis=1)

    def project(self, x: Array) -> Array:
        """Replace y by the nearest point of the curve."""
        y, other = self._split(x)
        curve = self._curve(y)
        return self._join(curve.point(curve.nearest(y)), other)

    def _log_prob(self, x: Array) -> Array:
        """Points of similar size together: a distant one needs a long curve."""
        y, _ = self._split(x)
        octave = np.ceil(np.log2(1 + abs(y)))
        result = np.empty(len(y))
        for power in np.unique(octave):
            rows = octave == power
            result[rows] = self._curve(y[rows]).log_prob(y[rows], self.noise)
        return result


@dataclass(frozen=True)
class Torus(CurveManifold):
    """A torus around the third axis, uniform in area (:ref:`theory-5`, case 9)."""

    major: float = 2.0  #: Radius R of the circle in the middle of the tube.
    minor: float = 1.0  #: Radius r < R of the tube.

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log 4 \pi^2 R r`."""
        return math.log(4 * math.pi**2 * self.major * self.minor)

    def _curve(self, y: Array) -> Curve:
        ratio = self.minor / self.major
        return Curve(
            point=lambda t: self.major + self.minor * np.exp(1j * t),
            velocity=lambda t: 1j * self.minor * np.exp(1j * t),
            log_density=lambda t: np.log((1 + ratio * np.cos(t)) / (2 * math.pi)),
            ends=(-math.pi, math.pi),
            kernel=log_ring,
        )

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        angle, around = rng.uniform(-math.pi, math.pi, (2, n))
        # angles are uniform; mirroring some from the inside to the outside makes area uniform
        mirrored = rng.uniform(-1, 1, n) > self.minor / self.major * np.cos(angle)
        angle = np.where(mirrored, math.pi - angle, angle)
        return self._join(self._curve(angle).point(angle), np.exp(1j * around))

    def _manifold_log_prob(self, points: Array) -> Array:
        return np.full(len(points), -self.manifold_entropy)


@dataclass(frozen=True)
class SwissRoll(CurveManifold):
    r"""scikit-learn's swiss roll :math:`(t \cos t, h, t \sin t)` (:ref:`theory-5`, case 9)."""

    noise: float = 0.3
    ends: tuple[float, float] = (1.5 * math.pi, 4.5 * math.pi)  #: Range of t, which is uniform.
    height: float = 21.0  #: h is uniform between 0 and this.

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log T H + \frac1T [\frac t2 \log(1 + t^2) - t + \arctan t]`, of the range T."""
        low, high = (t * math.log1p(t * t) / 2 - t + math.atan(t) for t in self.ends)
        return math.log(np.ptp(self.ends) * self.height) + (high - low) / float(np.ptp(self.ends))

    def _curve(self, y: Array) -> Curve:
        return Curve(
            point=lambda t: t * np.exp(1j * t),
            velocity=lambda t: (1 + 1j * t) * np.exp(1j * t),
            log_density=lambda t: np.full_like(t, -math.log(np.ptp(self.ends))),
            ends=self.ends,
        )

    def _split(self, x: Array) -> tuple[Array, Array]:
        return x[:, 0] + 1j * x[:, 2], x[:, 1]

    def _join(self, y: Array, other: Array) -> Array:
        return np.stack([y.real, other.clip(0, self.height), y.imag], axis=1)

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        t, h = rng.uniform(*self.ends, n), rng.uniform(0, self.height, n)
        return self._join(t * np.exp(1j * t), h)

    def _log_prob(self, x: Array) -> Array:
        half = self.height / 2
        # by symmetry both tails are lower ones, whose logarithms are accurate far away
        off = -abs(x[:, 1] - half)
        upper, lower = (scipy.special.log_ndtr((off + edge) / self.noise) for edge in (half, -half))
        log_height = upper + np.log1p(-np.exp(lower - upper)) - math.log(self.height)
        return log_height + super()._log_prob(x)

    def _manifold_log_prob(self, points: Array) -> Array:
        t_squared = points[:, 0] ** 2 + points[:, 2] ** 2
        return -math.log(np.ptp(self.ends) * self.height) - np.log1p(t_squared) / 2


@dataclass(frozen=True)
class ThinSpiral(CurveManifold):
    r"""A spiral in the plane, :math:`\tfrac13 (-t \cos t, t \sin t)`, less dense farther out.

    With :math:`t = 3 \pi \sqrt u` and u exponential of mean 0.3, so that t has a Rayleigh density
    (Horvat & Pfister 2021, whose data have no noise).
    """

    ambient_dim = 2
    dim = 1

    _variance: ClassVar[float] = 1.35 * math.pi**2

    @property
    def manifold_entropy(self) -> float:
        r""":math:`H_t + \frac12 \mathrm{E} \log(1 + t^2) - \log 3`, :math:`H_t` that of t."""
        of_t = 1 + math.log(self._variance / 2) / 2 + np.euler_gamma / 2
        rate = 1 / (2 * self._variance)
        return of_t + math.exp(rate) * float(scipy.special.exp1(rate)) / 2 - math.log(3)

    def _curve(self, y: Array) -> Curve:
        # to a density of e^-50, or a turn beyond the farthest point
        far = max(math.sqrt(100 * self._variance), 3 * abs(y).max(initial=0) + 2 * math.pi)
        return Curve(
            point=lambda t: -t * np.exp(-1j * t) / 3,
            velocity=lambda t: (1j * t - 1) * np.exp(-1j * t) / 3,
            log_density=self._log_density,
            ends=(0.0, far),
        )

    def _log_density(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.log(t / self._variance) - t**2 / (2 * self._variance)

    def _split(self, x: Array) -> tuple[Array, Array]:
        return x[:, 0] + 1j * x[:, 1], x[:, :0]

    def _join(self, y: Array, other: Array) -> Array:
        return np.stack([y.real, y.imag], axis=1)

    def project(self, x: Array) -> Array:
        """By bisection around the nearest of a grid on the turns inside and outside of x."""
        y, other = self._split(x)
        curve = self._curve(y)
        # turns are 2 pi apart in t, and |y| = t / 3
        offsets, step = np.linspace(-1.5 * math.pi, 1.5 * math.pi, 97, retstep=True)
        window = 3 * abs(y)[:, None] + offsets
        distance = abs(y[:, None] - curve.point(window.clip(0)))
        t = window[np.arange(len(y)), distance.argmin(1)]
        t = curve.bisect(y, (t - step).clip(0), (t + step).clip(0))
        return self._join(curve.point(t), other)

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        t = np.sqrt(self._variance) * rng.rayleigh(size=n)
        return np.stack([-t * np.cos(t), t * np.sin(t)], axis=1) / 3

    def _manifold_log_prob(self, points: Array) -> Array:
        t = 3 * np.linalg.norm(points, axis=1)
        return self._log_density(t) - np.log1p(t**2) / 2 + math.log(3)


@dataclass(frozen=True)
class Paraboloid(CurveManifold):
    """The paraboloid z = (x^2 + y^2) / 2 over a normal (x, y) (:ref:`theory-5`, case 9)."""

    @property
    def manifold_entropy(self) -> float:
        r""":math:`\log 2 \pi e + \frac12 e^{1/2} E_1(1/2)`."""
        return math.log(2 * math.pi * math.e) + math.exp(0.5) * float(scipy.special.exp1(0.5)) / 2

    def _curve(self, y: Array) -> Curve:
        # The point nearest to y = rho + i z solves s^3 + 2 (1 - z) s = 2 rho, so s is at most
        # sqrt(2 (z - 1)) + cbrt(2 rho). Beyond it by u, half the squared distance increases by
        # u^4 / 8; where this is 50 sigma^2, the density is below e^-50.
        nearest = np.sqrt(2 * (y.imag - 1).clip(0)) + np.cbrt(2 * y.real)
        return Curve(
            point=lambda s: s + 0.5j * s**2,
            velocity=lambda s: 1 + 1j * s,
            log_density=lambda s: np.log(s) - s**2 / 2,
            ends=(0.0, nearest.max(initial=0) + (8 * 50 * self.noise**2) ** 0.25),
            kernel=log_ring,
        )

    def _draw(self, n: int, rng: np.random.Generator) -> Array:
        flat = rng.standard_normal((n, 2))
        return np.column_stack([flat, (flat**2).sum(1) / 2])

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
"""All manifolds, by the value of the setting `source`."""


def manifold(name: str, noise: float | None = None) -> Manifold:
    """Build a manifold by its name in `MANIFOLDS`, with its default noise or another.

    Example:
        >>> from submanifold.data.synthetic import manifold
        >>> circle = manifold("circle", noise=0.1)
        >>> circle.log_prob(circle.sample(5, np.random.default_rng(0))).shape
        (5,)
    """
    return MANIFOLDS[name]() if noise is None else MANIFOLDS[name](noise=noise)
