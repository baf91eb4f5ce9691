import io
import warnings
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from submanifold.plots import as_png, gaussian_fits
from submanifold.plots.divergences import (
    Density,
    Gaussian,
    curved_density,
    fit_js,
    fit_kl,
    js_divergence,
    kl_divergence,
    log_normal,
)

SPACING = 0.1
AXIS = np.arange(-6, 6, SPACING)
POINTS = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2)
AREA = SPACING**2
TILTED = Gaussian(np.array([0.7, -0.4]), np.array([[0.9, 0.35], [0.35, 0.3]]))
ROUND = Gaussian(np.array([-0.5, 0.5]), 0.5 * np.eye(2))


def on_grid(*gaussians):
    values = np.mean([np.exp(log_normal(POINTS, each)) for each in gaussians], axis=0)
    return Density(POINTS, values, AREA)


def close(a, b, tolerance):
    return all(np.allclose(x, y, atol=tolerance) for x, y in zip(a, b, strict=True))


def js_of(density, gaussian):
    q = np.exp(log_normal(density.points, gaussian))
    return js_divergence(density.values, q, density.area)


def crossed(distance):
    """Two thin Gaussians across each other's direction."""
    return [
        Gaussian(np.array([-distance, 0.0]), np.diag([0.02, 0.3])),
        Gaussian(np.array([distance, 0.0]), np.diag([0.3, 0.02])),
    ]


def test_the_log_density_is_the_normal_one():
    at_mean, one_off = log_normal(
        TILTED.mean + np.array([[0, 0], np.linalg.cholesky(TILTED.covariance) @ [1, 0]]), TILTED
    )
    assert at_mean == pytest.approx(-np.log(2 * np.pi * np.sqrt(np.linalg.det(TILTED.covariance))))
    assert one_off == pytest.approx(at_mean - 0.5)
    assert on_grid(TILTED).values.sum() * AREA == pytest.approx(1)


def test_kl_divergence_of_gaussians_is_the_closed_form():
    p, q = TILTED, ROUND
    precision = np.linalg.inv(q.covariance)
    apart = q.mean - p.mean
    known = 0.5 * (
        np.trace(precision @ p.covariance)
        + apart @ precision @ apart
        - 2
        + np.log(np.linalg.det(q.covariance) / np.linalg.det(p.covariance))
    )
    values = on_grid(p).values
    assert kl_divergence(values, log_normal(POINTS, q), AREA) == pytest.approx(known)
    assert kl_divergence(values, log_normal(POINTS, p), AREA) == pytest.approx(0, abs=1e-9)


def test_js_divergence_of_equal_and_of_disjoint_densities():
    p = on_grid(TILTED).values
    assert js_divergence(p, p, AREA) == pytest.approx(0, abs=1e-6)
    left, right = (Gaussian(np.array([x, 0.0]), 0.1 * np.eye(2)) for x in (-4, 4))
    assert js_of(on_grid(left), right) == pytest.approx(np.log(2))
    outside = Gaussian(np.array([40.0, 0.0]), np.eye(2))
    assert js_of(on_grid(left), outside) == pytest.approx(np.log(2))


def test_js_divergence_is_the_mean_of_two_kl_divergences_from_the_mixture():
    p, q = (on_grid(each).values for each in (TILTED, ROUND))
    log_mixture = np.log((p + q) / 2)
    known = (kl_divergence(p, log_mixture, AREA) + kl_divergence(q, log_mixture, AREA)) / 2
    assert js_divergence(p, q, AREA) == pytest.approx(known)
    assert js_divergence(q, p, AREA) == pytest.approx(known)


def test_half_of_a_density_has_the_known_js_divergence_from_it():
    left, right = (Gaussian(np.array([x, 0.0]), 0.1 * np.eye(2)) for x in (-3, 3))
    assert js_of(on_grid(left, right), left) == pytest.approx(0.75 * np.log(4 / 3))


@pytest.mark.parametrize("gaussian", [TILTED, ROUND])
def test_both_fits_of_a_gaussian_are_itself(gaussian):
    density = on_grid(gaussian)
    assert close(fit_kl(density), gaussian, 1e-6)
    start = Gaussian(np.array([0.3, 0.6]), np.diag([2.0, 1.5]))
    assert close(fit_js(density, [start]), gaussian, 1e-3)


def test_the_kl_fit_has_the_moments_of_the_mixture_and_no_neighbour_is_better():
    first, second = crossed(2.5)
    density = on_grid(first, second)
    fit = fit_kl(density)
    assert close(fit, (np.zeros(2), np.diag([6.25 + 0.16, 0.16])), 1e-6)

    def divergence(gaussian):
        return kl_divergence(density.values, log_normal(POINTS, gaussian), AREA)

    least = divergence(fit)
    for change in (0.05, -0.05):
        assert divergence(fit._replace(mean=fit.mean + np.array([change, 0]))) > least
        assert divergence(fit._replace(covariance=(1 + change) * fit.covariance)) > least


def test_the_js_fit_takes_the_best_of_the_minima_and_no_neighbour_is_better():
    heavy, light = crossed(2.5)
    density = on_grid(heavy, heavy, light)
    fit = fit_js(density, [light, fit_kl(density), heavy])
    assert np.linalg.norm(fit.mean - heavy.mean) < 0.2
    stuck = fit_js(density, [light])
    assert np.linalg.norm(stuck.mean - light.mean) < 0.2
    least = js_of(density, fit)
    assert least < js_of(density, stuck)
    for change in (0.02, -0.02):
        for moved in change * np.eye(2):
            assert js_of(density, fit._replace(mean=fit.mean + moved)) > least
        turned = fit.covariance + change * np.array([[0, 0.5], [0.5, 0]])
        assert js_of(density, fit._replace(covariance=turned)) > least
        assert js_of(density, fit._replace(covariance=(1 + change) * fit.covariance)) > least


def test_a_start_too_far_to_descend_is_an_error():
    far = Gaussian(np.array([5.0, 5.0]), 0.01 * np.eye(2))
    with pytest.raises(RuntimeError, match="no minimum"):
        fit_js(on_grid(Gaussian(np.array([-4.0, -4.0]), 0.05 * np.eye(2))), [far])


def test_the_figure_s_density_is_one_and_kl_covers_all_its_curves_but_js_one():
    density, parts = curved_density()
    assert density.values.sum() * density.area == pytest.approx(1)
    assert np.allclose(density.values, sum(part.values for part in parts))
    by_kl = fit_kl(density)
    by_js = fit_js(density, [by_kl, *map(fit_kl, parts)])
    assert js_of(density, by_js) < js_of(density, by_kl) - 0.1
    pairs = [a.values + b.values for a, b in combinations(parts, 2)]
    others = [fit_kl(density._replace(values=values)) for values in pairs]
    assert js_of(density, by_js) <= min(js_of(density, fit_js(density, [each])) for each in others)

    def covered(gaussian):
        """Shares of the curves' mass within three standard deviations."""
        log_q = log_normal(density.points, gaussian)
        inside = log_normal(gaussian.mean[None], gaussian) - log_q < 4.5
        return np.array([part.values[inside].sum() / part.values.sum() for part in parts])

    assert (covered(by_kl) > 0.99).all()
    assert sorted(covered(by_js) > 0.5) == [False, False, True]


def test_figure_1_states_the_divergences_and_cuts_no_text():
    figure = gaussian_fits()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.open(io.BytesIO(as_png(figure, dpi=60)))
    assert np.asarray(image.convert("RGB")).std() > 5
    density, parts = curved_density()
    fits = fit_kl(density), fit_js(density, [fit_kl(part) for part in parts])
    for axes, fit in zip(figure.axes[1:], fits, strict=True):
        kl = kl_divergence(density.values, log_normal(density.points, fit), density.area)
        assert f"KL {kl:.2f}, JS {js_of(density, fit):.3f} nats" in axes.get_title()
        (contours,) = axes.collections
        ellipse = contours.get_paths()[0].vertices
        distances = (ellipse - fit.mean) @ np.linalg.inv(np.linalg.cholesky(fit.covariance)).T
        assert np.allclose(np.linalg.norm(distances, axis=1), 1, atol=0.1)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    boxes.append(figure.legends[0].get_window_extent(renderer))
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
