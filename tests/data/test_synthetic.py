"""The contract of synthetic manifolds, and known values (docs/theory.md 5, cases 1, 7, 8 and 9)."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import (
    expon,
    kstest,
    multivariate_normal,
    norm,
    rayleigh,
    uniform,
    vonmises,
    vonmises_fisher,
)

from submanifold.common.errors import UserError
from submanifold.data.synthetic import (
    MANIFOLDS,
    Paraboloid,
    SwissRoll,
    ThinSpiral,
    Torus,
    VmfSphere,
    VonMisesCircle,
    manifold,
)

CURVED = [name for name in MANIFOLDS if name != "linear_gaussian"]
OTHERS = [  # not the defaults, such as a radius of 1 or a mean along an axis
    VonMisesCircle(0.4, radius=1.5, concentration=2.0, mean=(-3.0, 4.0)),
    VmfSphere(0.2, radius=0.7, concentration=3.0, mean=(1.0, 2.0, -2.0)),
    Torus(0.3, major=1.5, minor=0.5),
    SwissRoll(1.0, ends=(2.0, 9.0), height=3.0),
    Paraboloid(0.5),
    Torus(3.0),
]


def generator(seed=0):
    return np.random.default_rng(seed)


def circle_of(n):
    """Nodes and weights on a circle of angles."""
    return np.linspace(-math.pi, math.pi, n, endpoint=False), np.full(n, 2 * math.pi / n)


def segment(low, high, n):
    """Nodes and weights of Gauss and Legendre."""
    t, weights = np.polynomial.legendre.leggauss(n)
    return low + (high - low) * (t + 1) / 2, (high - low) / 2 * weights


def quadrature(m, n=600):
    """Quadrature of a manifold: points (n, D) and the probability of each, from its chart."""
    if isinstance(m, ThinSpiral):
        start, weights = segment(0, 25 / n, 12)  # of a piece: one of n
        t = (start + 25 / n * np.arange(n)[:, None]).ravel()
        weights = np.tile(weights, n)
        points = np.stack([-t * np.cos(t), t * np.sin(t)], 1) / 3
        return points, weights * rayleigh(scale=math.pi * math.sqrt(1.35)).pdf(t)
    if m.ambient_dim == 2:
        angle, weights = circle_of(n)
        points = m.radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        mean = math.atan2(m.mean[1], m.mean[0])
        density = vonmises.pdf(angle, m.concentration, mean) if m.concentration else 1 / 2 / np.pi
        return points, weights * density
    first = {
        Torus: lambda: circle_of(n),
        SwissRoll: lambda: segment(*m.ends, n),
        Paraboloid: lambda: segment(0, 7, n),
    }.get(type(m), lambda: segment(-1, 1, n))()
    second = segment(0, m.height, n) if isinstance(m, SwissRoll) else circle_of(n)
    (u, v), weights = np.meshgrid(first[0], second[0]), np.outer(second[1], first[1])
    if isinstance(m, Torus):
        rho = m.major + m.minor * np.cos(u)
        points = rho * np.cos(v), rho * np.sin(v), m.minor * np.sin(u)
        density = rho / m.major / (4 * np.pi**2)
    elif isinstance(m, SwissRoll):
        points = u * np.cos(u), v, u * np.sin(u)
        density = np.full_like(u, 1 / (m.ends[1] - m.ends[0]) / m.height)
    elif isinstance(m, Paraboloid):
        points = u * np.cos(v), u * np.sin(v), u**2 / 2
        density = u * np.exp(-(u**2) / 2) / (2 * np.pi)
    else:
        ring = np.sqrt(1 - u**2)
        points = ring * np.cos(v), ring * np.sin(v), u
        density = np.full_like(u, 1 / (4 * np.pi))
        if m.concentration:
            mean = np.array(m.mean) / np.linalg.norm(m.mean)
            density = vonmises_fisher(mean, m.concentration).pdf(np.stack(points, -1))
        points = m.radius * np.stack(points)
    return np.stack(points, -1).reshape(-1, 3), (weights * density).ravel()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_linear_gaussian_has_a_normal_density(noise):
    m = manifold("linear_gaussian", noise)
    clean = m.axes @ np.diag(m.variances) @ m.axes.T
    x = m.sample(50_000, generator())
    assert np.cov(x.T) == pytest.approx(clean + noise**2 * np.eye(8), abs=0.06)
    true = multivariate_normal(np.zeros(8), clean + noise**2 * np.eye(8))
    assert m.log_prob(x) == pytest.approx(true.logpdf(x), abs=1e-9)
    if noise == 0:
        assert 4 - m.log_prob(np.zeros((1, 8))) == pytest.approx(2.44127, abs=6e-6)
        assert np.square(x - m.project(x)).mean() == pytest.approx(0.020625, rel=0.03)


@pytest.mark.parametrize("m", [*map(manifold, CURVED), *OTHERS], ids=repr)
def test_the_density_is_that_of_a_mixture_of_noisy_points(m):
    points, mass = quadrature(m)
    assert mass.sum() == pytest.approx(1, abs=1e-9)
    axis = np.eye(m.ambient_dim)[-1:]  # where it is 1, rays from all around the paraboloid meet
    near = m.sample(4, generator())
    far = 3 * near if m in OTHERS else near + 3 * m.noise  # as far as the dust is fine enough
    x = np.concatenate([near, far, 0 * axis, axis])
    brute = [
        logsumexp(-np.square(points - one).sum(1) / (2 * m.noise**2), b=mass)
        - m.ambient_dim / 2 * math.log(2 * math.pi * m.noise**2)
        for one in x
    ]
    assert m.log_prob(x) == pytest.approx(np.array(brute), abs=1e-7)
    alone = np.concatenate([m.log_prob(one[None]) for one in x])
    assert alone == pytest.approx(np.array(brute), abs=1e-7)


@pytest.mark.parametrize("m", [*map(manifold, MANIFOLDS), *OTHERS], ids=repr)
def test_the_mean_log_density_of_samples_is_the_entropy(m):
    nats = -m.manifold_log_prob(replace(m, noise=0).sample(10_000, generator()))
    error = nats.std() / math.sqrt(10_000)
    assert nats.mean() == pytest.approx(m.manifold_entropy, abs=4 * error + 1e-9)


@pytest.mark.parametrize("m", [*map(manifold, CURVED), *OTHERS[:-2]], ids=repr)
def test_the_projection_is_the_nearest_point_of_the_manifold(m):
    points, _ = quadrature(m, 250)
    assert m.project(points) == pytest.approx(points, abs=1e-9)
    axes = np.eye(m.ambient_dim)
    centres = [0 * axes[:1], 1e-9 * axes, 2 * axes, 5 * axes]  # of symmetry, of the torus' tube
    around = generator().standard_normal((60, m.ambient_dim)) * np.repeat([[1], [4], [20]], 20, 0)
    x = np.concatenate([*centres, around, m.sample(10, generator())])
    p = m.project(x)
    assert m.project(p) == pytest.approx(p, abs=1e-9)
    nearest = [np.linalg.norm(points - one, axis=1).min() for one in x]
    assert (np.linalg.norm(x - p, axis=1) <= np.array(nearest) + 1e-10).all()


def angle(x):
    return np.arctan2(x[:, 1], x[:, 0])


EVEN = uniform(-math.pi, 2 * math.pi).cdf
MARGINALS = {
    "circle": [(angle, EVEN)],
    "von_mises_circle": [(angle, vonmises(8).cdf)],
    "sphere": [(angle, EVEN), (lambda x: x[:, 2], uniform(-1, 2).cdf)],
    "vmf_sphere": [
        (angle, EVEN),
        (lambda x: x[:, 2], lambda w: np.expm1(10 * (w + 1)) / math.expm1(20)),
    ],
    "torus": [
        (angle, EVEN),
        (
            lambda x: np.arctan2(x[:, 2], np.hypot(x[:, 0], x[:, 1]) - 2),
            lambda t: (t + math.pi + np.sin(t) / 2) / (2 * math.pi),
        ),
    ],
    "swiss_roll": [
        (lambda x: np.hypot(x[:, 0], x[:, 2]), uniform(1.5 * math.pi, 3 * math.pi).cdf),
        (lambda x: x[:, 1], uniform(0, 21).cdf),
    ],
    "paraboloid": [(angle, EVEN), (lambda x: x[:, 2], expon.cdf), (lambda x: x[:, 0], norm.cdf)],
    # u of the data's own definition, t = 3 pi sqrt(u)
    "thin_spiral": [(lambda x: (np.hypot(x[:, 0], x[:, 1]) / math.pi) ** 2, expon(scale=0.3).cdf)],
}


@pytest.mark.parametrize("name", CURVED)
def test_samples_follow_the_density(name):
    x = manifold(name, 0).sample(20_000, generator())
    for marginal, cdf in MARGINALS[name]:
        assert kstest(marginal(x), cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", MANIFOLDS)
def test_the_noise_is_isotropic_and_depends_on_the_generator(name):
    clean, noisy = (manifold(name, s).sample(5000, generator()) for s in (0, 0.2))
    assert kstest((noisy - clean).ravel(), norm(0, 0.2).cdf).pvalue > 1e-3
    assert np.cov((noisy - clean).T) == pytest.approx(0.04 * np.eye(clean.shape[1]), abs=0.004)
    assert np.array_equal(noisy, manifold(name, 0.2).sample(5000, generator()))
    assert not np.array_equal(noisy, manifold(name, 0.2).sample(5000, generator(1)))


def test_there_is_no_density_without_noise():
    message = "^noise: expected more than 0, got 0: .* dimension 2 have no density in 3"
    with pytest.raises(UserError, match=message):
        manifold("torus", 0).log_prob(np.zeros((2, 3)))
