import math
from functools import partial

import pytest
import torch
from scipy import special
from torch import nn
from torch.autograd.functional import jacobian

from submanifold.flows import Affine, Flow, Glow, RealNVP
from submanifold.geometry.volume import estimate_log_volume, log_volume
from submanifold.models import Hierarchy, Stage, manifold_log_prob


def hierarchy_of(*stages, scale=0.3, seed=0):
    """(flow, dim) pairs with weights that are moved away from their start, in double precision."""
    torch.manual_seed(seed)
    hierarchy = Hierarchy([Stage(flow(), dim) for flow, dim in stages])
    with torch.no_grad():
        for p in hierarchy.parameters():
            p.add_(scale / p[0].numel() ** 0.5 * torch.randn_like(p))
    return hierarchy.double()


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def singular_values(hierarchy, u):
    """Of the decoder's Jacobian, from autograd in reverse mode."""
    rows = torch.stack([jacobian(lambda e: hierarchy.decode(e[None])[0].flatten(), e) for e in u])
    return torch.linalg.svdvals(rows)


SMALL_GLOW = partial(Glow, (3, 4, 4), 2, 2, 4)
CASES = {
    "glow": [(SMALL_GLOW, 10)],
    "realnvp": [(partial(RealNVP, 6), 4)],
    "affine": [(partial(Affine, 7), 3)],
    "one dimension": [(partial(RealNVP, 5), 1)],
    "two stages": [(SMALL_GLOW, 20), (partial(RealNVP, 20), 6)],
    "three stages": [(SMALL_GLOW, 20), (partial(RealNVP, 20), 8), (partial(Affine, 8), 3)],
}


@pytest.mark.parametrize("name", CASES)
def test_the_log_volume_is_that_of_autograds_jacobian(name):
    hierarchy = hierarchy_of(*CASES[name])
    u = normal(4, hierarchy.dim)
    expected = singular_values(hierarchy, u).log().sum(1)
    assert (expected.std() > 1e-3) == (name != "affine")
    torch.testing.assert_close(log_volume(hierarchy.decode, u), expected, rtol=0, atol=1e-10)
    # as many nodes as dimensions leave the probes' error alone, and none in one dimension
    estimate, error = estimate_log_volume(hierarchy.decode, u, 40, generator=torch.Generator())
    assert ((estimate - expected).abs() <= 5 * error + 1e-10).all()


def test_the_log_volume_of_an_affine_map_has_its_closed_form():
    hierarchy = hierarchy_of((partial(Affine, 7), 3))
    linear = hierarchy.stages[0].flow
    columns = torch.linalg.inv(linear.weight)[:, :3] / linear.norm.log_scale.exp()[:, None]
    expected = 0.5 * torch.logdet(columns.T @ columns)
    found = log_volume(hierarchy.decode, normal(2, 3))
    torch.testing.assert_close(found, expected.expand(2).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("flow", [SMALL_GLOW, partial(RealNVP, 6), partial(Affine, 5)])
def test_a_manifold_that_is_all_of_the_space_has_the_density_of_the_space(flow):
    hierarchy = hierarchy_of((flow, math.prod(flow().event_shape)))
    x = hierarchy.decode(normal(4, hierarchy.dim)).detach()
    u, _, log_det = hierarchy.stages[0](x)
    torch.testing.assert_close(
        -log_volume(hierarchy.decode, u), log_det.detach(), rtol=0, atol=1e-9
    )
    value, error = manifold_log_prob(hierarchy, x)
    torch.testing.assert_close(value, hierarchy.log_prob(x).detach(), rtol=0, atol=1e-9)
    assert not error.any()


def test_the_density_is_that_of_the_projection():
    hierarchy = hierarchy_of(*CASES["two stages"])
    x = normal(3, 3, 4, 4)
    (value, _), (projected, _) = (
        manifold_log_prob(hierarchy, each) for each in (x, hierarchy.project(x))
    )
    torch.testing.assert_close(value, projected, rtol=0, atol=1e-8)
    assert not value.requires_grad


def test_an_ill_conditioned_volume_keeps_its_digits():
    hierarchy = Hierarchy([Stage(Affine(3), 2)]).double()
    linear = hierarchy.stages[0].flow
    with torch.no_grad():
        # columns (1, 1, 0) and (1, 1, 1e-9): the determinant of J^T J is lost in its rounding
        columns = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1e-9, 0]], dtype=torch.float64)
        linear.weight.copy_(torch.linalg.inv(columns))
    found = log_volume(hierarchy.decode, normal(1, 2)).item()
    assert found == pytest.approx(math.log(1e-9 * math.sqrt(2)), abs=1e-6)


def cumulative(u):
    return torch.special.ndtr(u)


def quantile(w):
    return torch.special.ndtri(w)


def angle(w, cdf, density):
    """Where the cumulative distribution on (-pi, pi) is w: bisection, then its derivative."""
    low, high = torch.full_like(w, -math.pi).detach(), torch.full_like(w, math.pi).detach()
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle) < w.detach()
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    # a Newton step at the solution moves it by nothing, and has the derivative of the inverse
    return low + (w - cdf(low)) / density(low)


class Known(Flow):
    """A parametrisation of a known manifold by normal coordinates, and the true density on it."""

    dim = 2
    entropy = 0.0

    def __init__(self):
        super().__init__()
        self.event_shape = (self.dim + 1,)
        self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        z = torch.stack(self.coordinates(*x.T), 1)
        return z, torch.full((len(x),), torch.nan)

    def inverse(self, z):
        return torch.stack(self.point(*z.T), 1)


class Circle(Known):
    """Radius 3; kappa 0 is uniform, else von Mises (case 7)."""

    dim, radius = 1, 3.0

    def __init__(self, kappa=0):
        super().__init__()
        self.kappa = kappa
        self.entropy = {0: math.log(2 * math.pi * 3), 8: 1.51271}[kappa]
        order = torch.arange(1, 60, dtype=torch.float64)
        ratio = special.ive(order.numpy(), kappa) / special.ive(0, kappa)
        self.order, self.series = order, torch.from_numpy(ratio)

    def density(self, theta):
        """Of the angle."""
        return torch.exp(self.kappa * (theta.cos() - 1)) / (
            2 * math.pi * special.ive(0, self.kappa)
        )

    def cdf(self, theta):
        sines = torch.sin(theta[..., None] * self.order) / self.order
        return 0.5 + theta / (2 * math.pi) + (sines * self.series).sum(-1) / math.pi

    def point(self, u, v):
        theta = angle(cumulative(u), self.cdf, self.density)
        return (self.radius + v) * theta.cos(), (self.radius + v) * theta.sin()

    def coordinates(self, x, y):
        theta = torch.atan2(y, x)
        return quantile(self.cdf(theta)), torch.hypot(x, y) - self.radius

    def log_prob(self, x, y):
        return self.density(torch.atan2(y, x)).log() - math.log(self.radius)


class Sphere(Known):
    """Radius 1; kappa 0 is uniform, else von Mises-Fisher about the third axis (case 8)."""

    def __init__(self, kappa=0):
        super().__init__()
        self.kappa, self.entropy = kappa, {0: 2.53102, 5: 1.22794, 10: 0.53529}[kappa]

    def height(self, w):
        if not self.kappa:
            return 2 * w - 1
        return 1 + torch.log(w + (1 - w) * math.exp(-2 * self.kappa)) / self.kappa

    def height_cdf(self, z):
        if not self.kappa:
            return (z + 1) / 2
        least = math.exp(-2 * self.kappa)
        return (torch.exp(self.kappa * (z - 1)) - least) / (1 - least)

    def point(self, u1, u2, v):
        z, phi = self.height(cumulative(u1)), 2 * math.pi * cumulative(u2)
        flat = (1 - z.square()).sqrt()
        return (1 + v) * flat * phi.cos(), (1 + v) * flat * phi.sin(), (1 + v) * z

    def coordinates(self, x, y, z):
        r = (x.square() + y.square() + z.square()).sqrt()
        turn = torch.atan2(y, x) / (2 * math.pi) % 1
        return quantile(self.height_cdf(z / r)), quantile(turn), r - 1

    def log_prob(self, x, y, z):
        if not self.kappa:
            return torch.full_like(z, -math.log(4 * math.pi))
        normalizer = self.kappa / (2 * math.pi * (1 - math.exp(-2 * self.kappa)))
        return self.kappa * (z - 1) + math.log(normalizer)


class Torus(Known):
    """Radii 2 and 1, uniform in area (case 9)."""

    entropy = 4.36890

    def density(self, psi):
        return (2 + psi.cos()) / (4 * math.pi)

    def cdf(self, psi):
        return 0.5 + (2 * psi + psi.sin()) / (4 * math.pi)

    def point(self, u1, u2, v):
        psi = angle(cumulative(u1), self.cdf, self.density)
        phi = 2 * math.pi * cumulative(u2)
        ring = 2 + (1 + v) * psi.cos()
        return ring * phi.cos(), ring * phi.sin(), (1 + v) * psi.sin()

    def coordinates(self, x, y, z):
        ring = torch.hypot(x, y) - 2
        turn = torch.atan2(y, x) / (2 * math.pi) % 1
        return quantile(self.cdf(torch.atan2(z, ring))), quantile(turn), torch.hypot(ring, z) - 1

    def log_prob(self, x, y, z):
        return torch.full_like(z, -math.log(8 * math.pi**2))


class SwissRoll(Known):
    """That of scikit-learn (case 9); v lies along the radius."""

    entropy = 7.49340

    def point(self, u1, u2, v):
        t = 1.5 * math.pi * (1 + 2 * cumulative(u1))
        return (t + v) * t.cos(), 21 * cumulative(u2), (t + v) * t.sin()

    def coordinates(self, x, y, z):
        t = self.position(x, z)
        return quantile((t / (1.5 * math.pi) - 1) / 2), quantile(y / 21), torch.hypot(x, z) - t

    def position(self, x, z):
        """Of all t with this angle, the one nearest to the radius."""
        turn = torch.atan2(z, x)
        return turn + 2 * math.pi * ((torch.hypot(x, z) - turn) / (2 * math.pi)).round()

    def log_prob(self, x, y, z):
        t = self.position(x, z)
        return -math.log(3 * math.pi * 21) - 0.5 * torch.log1p(t.square())


class Paraboloid(Known):
    """Height (x^2 + y^2) / 2 over a normal (x, y) (case 9)."""

    entropy = 3.29933

    def point(self, u1, u2, v):
        return u1, u2, (u1.square() + u2.square()) / 2 + v

    def coordinates(self, x, y, z):
        return x, y, z - (x.square() + y.square()) / 2

    def log_prob(self, x, y, z):
        squares = x.square() + y.square()
        return -0.5 * squares - math.log(2 * math.pi) - 0.5 * torch.log1p(squares)


KNOWN = [
    Circle(), Circle(kappa=8), Sphere(), Sphere(kappa=5), Sphere(kappa=10),
    Torus(), SwissRoll(), Paraboloid(),
]  # fmt: skip


@pytest.mark.parametrize("flow", KNOWN, ids=lambda f: f"{type(f).__name__}-{f.entropy}")
def test_known_manifolds_have_their_densities_and_their_entropies(flow):
    hierarchy = Hierarchy([Stage(flow, flow.dim)])
    # the trapezoidal rule converges at once on a normal weight; beyond 5 lie 6e-7 of it
    axis = torch.arange(-20, 21, dtype=torch.float64) / 4
    u = torch.cartesian_prod(*[axis] * flow.dim).view(-1, flow.dim)
    weights = (-0.5 * u.square().sum(1)).exp()
    x = hierarchy.decode(u)
    found, error = manifold_log_prob(hierarchy, x)
    torch.testing.assert_close(found, flow.log_prob(*x.T), rtol=0, atol=1e-8)
    assert not error.any()
    entropy = -(weights * found).sum() / weights.sum()
    assert entropy.item() == pytest.approx(flow.entropy, abs=5e-5)


def test_the_largest_density_of_von_mises_is_known():
    hierarchy = Hierarchy([Stage(Circle(kappa=8), 1)])
    top = manifold_log_prob(hierarchy, torch.tensor([[3.0, 0]], dtype=torch.float64))[0]
    assert top.exp().item() == pytest.approx(0.36987, abs=5e-6)


def test_the_estimate_is_unbiased_and_its_errors_are_what_they_say():
    hierarchy = hierarchy_of((partial(Glow, (3, 8, 8), 2, 1, 4), 48))
    u = normal(48, 48)
    generator = torch.Generator().manual_seed(0)
    estimate, error = estimate_log_volume(hierarchy.decode, u, 10, 15, generator)
    excess = estimate - log_volume(hierarchy.decode, u)
    assert 0.1 < error.mean() < 2
    # a mean of 48 events, each of which has probes of its own
    assert excess.mean().abs() < 4 * error.square().mean().sqrt() / math.sqrt(48)
    # 10 probes make it Student's, of standard deviation 1.13
    assert 0.85 < (excess / error).square().mean().sqrt() < 1.4


def test_truncation_adds_and_goes_away_with_more_nodes():
    hierarchy = hierarchy_of((partial(Affine, 24), 20), scale=1.0)
    u = normal(6, 20)

    def estimate(iterations):
        generator = torch.Generator().manual_seed(0)
        return estimate_log_volume(hierarchy.decode, u, 4, iterations, generator)[0]

    values = torch.stack([estimate(k) for k in (1, 2, 4, 8, 20)])
    assert (values.diff(dim=0) < 0).all()
    torch.testing.assert_close(estimate(100), values[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iterations", [1, 2, 60])
def test_an_invariant_subspace_ends_the_recurrence_exactly(dtype, iterations):
    hierarchy = Hierarchy([Stage(Affine(90), 70)]).double()
    linear = hierarchy.stages[0].flow
    nn.init.constant_(linear.norm.log_scale, 0.5)
    with torch.no_grad():
        linear.weight.copy_(torch.linalg.qr(normal(90, 90))[0])
    u = normal(3, 70).to(dtype)
    estimate, error = estimate_log_volume(hierarchy.to(dtype), u, 3, iterations)
    digits = 1e-10 if dtype == torch.float64 else 1e-4
    assert estimate.dtype == error.dtype == dtype
    assert estimate.numpy() == pytest.approx(-0.5 * 70, abs=digits)
    assert error.numpy() == pytest.approx(0, abs=digits)


def diagonal(log_scales):
    """A decoder that divides each coordinate by its scale: all signs give one and the same form."""
    hierarchy = Hierarchy([Stage(Affine(len(log_scales)), len(log_scales))]).double()
    linear = hierarchy.stages[0].flow
    nn.init.eye_(linear.weight)
    with torch.no_grad():
        linear.norm.log_scale.copy_(log_scales)
    return hierarchy


@pytest.mark.parametrize("nodes", [1, 2, 5, 40])
def test_as_many_nodes_as_there_are_eigenvalues_are_exact(nodes):
    # over a range of e^14, in which Lanczos vectors lose their orthogonality if left to themselves
    log_scales = torch.linspace(0, 7, nodes, dtype=torch.float64).repeat(2)
    hierarchy = diagonal(log_scales)
    estimate, error = estimate_log_volume(hierarchy.decode, normal(2, 2 * nodes), 3, nodes)
    assert estimate.numpy() == pytest.approx(-log_scales.sum().item(), abs=1e-8)
    assert error.numpy() == pytest.approx(0, abs=1e-8)


def test_a_recurrence_that_ends_without_rounding_is_no_division_by_zero():
    # 1/8 and its squares have no rounding errors
    estimate, error = estimate_log_volume(diagonal(torch.zeros(64)), normal(2, 64), 3)
    assert not estimate.any()
    assert not error.any()


def test_large_dimensions_are_estimated_and_one_seed_gives_the_same_numbers():
    hierarchy = hierarchy_of((partial(RealNVP, 9, 2), 7), (partial(Affine, 7), 6))
    x = normal(3, 9)

    def draw(seed, exact_up_to=5):
        generator = torch.Generator().manual_seed(seed)
        return manifold_log_prob(hierarchy, x, exact_up_to, generator)

    (exact, none), (value, error) = draw(0, 6), draw(0)
    assert not none.any()
    assert (error > 0).all()
    values, errors = map(torch.stack, zip(*map(draw, range(20)), strict=True))
    error_of_mean = (errors.square().mean(0) / 20).sqrt()
    assert ((values.mean(0) - exact).abs() < 5 * error_of_mean).all()
    assert torch.equal(draw(0)[0], value)
    assert torch.equal(draw(0)[1], error)
    assert not torch.equal(draw(1)[0], value)


def test_single_precision_is_near_double():
    hierarchy, u = hierarchy_of(*CASES["two stages"]), normal(4, 6)

    def both(u):
        generator = torch.Generator().manual_seed(0)
        return log_volume(hierarchy.decode, u), *estimate_log_volume(
            hierarchy.decode, u, 2, 6, generator
        )

    double = both(u)
    hierarchy.float()
    for single, expected in zip(both(u.float()), double, strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


def test_an_event_that_is_not_finite_leaves_the_others_as_they_are():
    hierarchy = hierarchy_of((partial(RealNVP, 6), 4))
    u = normal(3, 4)
    u[1] = torch.nan

    def estimate(hierarchy, u):
        return estimate_log_volume(hierarchy.decode, u, 2, generator=torch.Generator())[0]

    for volume in (log_volume, estimate):
        assert volume(hierarchy, u).isfinite().tolist() == [True, False, True]
