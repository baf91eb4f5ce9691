import numpy as np
import pytest
from scipy.stats import multivariate_normal

from submanifold.plots.divergences import Density, fit_js, fit_kl, js_divergence, kl_divergence

SPACING = 0.1
AXIS = np.arange(-6, 6, SPACING)
POINTS = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2)
TILTED = multivariate_normal([0.7, -0.4], [[0.9, 0.35], [0.35, 0.3]])
ROUND = multivariate_normal([-0.5, 0.5], 0.5)


def at(x, variance=0.1):
    return multivariate_normal([x, 0], variance)


def on_grid(*gaussians):
    return Density(POINTS, np.mean([each.pdf(POINTS) for each in gaussians], axis=0), SPACING**2)


def assert_same_moments(a, b, tolerance):
    np.testing.assert_allclose(a.mean, b.mean, atol=tolerance)
    np.testing.assert_allclose(a.cov, b.cov, atol=tolerance)


def test_kl_divergence_of_gaussians_is_the_closed_form():
    difference, precision = ROUND.mean - TILTED.mean, np.linalg.inv(ROUND.cov)
    log_ratio = np.log(np.linalg.det(ROUND.cov) / np.linalg.det(TILTED.cov))
    trace = np.trace(precision @ TILTED.cov)
    expected = 0.5 * (trace + difference @ precision @ difference - 2 + log_ratio)
    assert kl_divergence(on_grid(TILTED), ROUND) == pytest.approx(expected)
    assert kl_divergence(on_grid(TILTED), TILTED) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("p", "q", "expected"), [
    ([TILTED], TILTED, 0),
    ([at(-4)], at(4), np.log(2)),
    ([at(-4)], at(40, 1), np.log(2)),  # outside of the grid
    ([at(-3), at(3)], at(-3), 0.75 * np.log(4 / 3)),
])  # fmt: skip
def test_js_divergence_has_its_known_values(p, q, expected):
    assert js_divergence(on_grid(*p), q) == pytest.approx(expected, abs=1e-6)


def test_fits_of_a_mixture():
    """The KL fit has the moments of the mixture; the JS fit is the heavier mode."""
    light = multivariate_normal([-2.5, 0], np.diag([0.02, 0.3]))
    heavy = multivariate_normal([2.5, 0], np.diag([0.3, 0.02]))
    moments = multivariate_normal([0, 0], np.diag([6.25 + 0.16, 0.16]))
    assert_same_moments(fit_kl(on_grid(light, heavy)), moments, 1e-6)
    density = on_grid(heavy, heavy, light)
    fit = fit_js(density, [light, fit_kl(density), heavy])
    assert np.linalg.norm(fit.mean - heavy.mean) < 0.2
    assert js_divergence(density, fit) < js_divergence(density, fit_js(density, [light]))
